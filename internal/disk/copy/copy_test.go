package copy

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/disk"
	"banger/internal/disk/disktest"
	"banger/internal/errs"
)

func TestConformance(t *testing.T) {
	disktest.Suite{
		Driver: New(), IO: disktest.Raw{},
		Small: func(t *testing.T) string { return disktest.MountTmpfs(t, "8m") },
	}.Run(t)
}

// Without room for the copy itself nothing of it is left.
func TestNoRoomForTheData(t *testing.T) {
	base := disk.Base{Path: filepath.Join(t.TempDir(), "base"), Bytes: 2 << 20}
	if err := os.WriteFile(base.Path, bytes.Repeat([]byte("banger"), int(base.Bytes)/6+1)[:base.Bytes], 0o400); err != nil {
		t.Fatal(err)
	}
	dir := disktest.MountTmpfs(t, "1m")
	if err := New().Probe(t.Context(), base, dir); errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "takes 2 MiB") {
		t.Errorf("probe: %v", err)
	}
	if err := New().Probe(t.Context(), base, t.TempDir()); err != nil {
		t.Errorf("where there is room: %v", err)
	}
	if v, err := New().Clone(t.Context(), base, disk.Spec{Home: disk.Home{ID: "aa", Dir: dir}}); err == nil {
		t.Errorf("%+v", v)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

func TestHolesStayHoles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "base")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 256 << 20
	for _, at := range []int64{0, 100 << 20, size - 4096} {
		if _, err := f.WriteAt(bytes.Repeat([]byte("x"), 4096), at); err != nil {
			t.Fatal(err)
		}
	}
	d := New()
	v, err := d.Clone(t.Context(), disk.Base{Path: path, Bytes: size}, disk.Spec{Home: disk.Home{Dir: dir}})
	if err != nil {
		t.Fatal(err)
	}
	if u, err := d.Usage(v); err != nil || u.AllocatedBytes > 64<<10 {
		t.Errorf("three blocks of data take %+v, %v", u, err)
	}
	got, err := os.Open(v.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	b := make([]byte, 4096)
	if _, err := got.ReadAt(b, 100<<20); err != nil || !bytes.Equal(b, bytes.Repeat([]byte("x"), 4096)) {
		t.Errorf("data in the middle: %v", err)
	}
}
