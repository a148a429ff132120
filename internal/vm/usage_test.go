package vm

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/disk"
	"banger/internal/errs"
)

// A disk is looked into once, and again whenever its file may have changed.
func TestUsageIsRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.img")
	looks := 0
	look := func(v disk.Volume) (disk.Usage, error) {
		looks++
		info, err := os.Stat(v.Path)
		if err != nil {
			return disk.Usage{}, errs.New(errs.NotFound, "no disk")
		}
		return disk.Usage{AllocatedBytes: info.Size()}, nil
	}
	var u usages
	v := disk.Volume{Path: path}
	now := func(wantLooks int, wantBytes int64) {
		t.Helper()
		got, err := u.of(v, look)
		if err != nil || got.AllocatedBytes != wantBytes || looks != wantLooks {
			t.Errorf("%d bytes after %d looks, %v; want %d after %d", got.AllocatedBytes, looks, err, wantBytes, wantLooks)
		}
	}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// ages has all that is known be of a file that has not changed for long.
	ages := func() {
		file, err := stampOf(path)
		if err != nil {
			t.Fatal(err)
		}
		u.known = map[string]usage{path: {file, disk.Usage{AllocatedBytes: 77}}}
	}

	write("a")
	now(1, 1)
	now(2, 1) // it was written just now
	ages()
	now(2, 77)
	write("bc")
	now(3, 2)
	ages()
	if err := os.Chtimes(path, time.Time{}, time.Unix(1, 0)); err != nil { // its ctime is today's
		t.Fatal(err)
	}
	now(4, 2)
	ages()
	u.forget(v)
	now(5, 2)
	ages()
	os.Remove(path)
	if _, err := u.of(v, look); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a disk that is gone: %v", err)
	}
}
