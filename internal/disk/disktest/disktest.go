// Package disktest owns the suite that every disk driver passes.
package disktest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/errs"
)

// Suite is a driver to test and the means to look at its volumes as a VM would.
type Suite struct {
	Driver disk.Driver

	// Read returns n bytes of the volume at offset. It may skip the test, saying why.
	Read func(t *testing.T, v disk.Volume, offset, n int64) []byte

	// Write writes n times the byte fill at offset. It may skip the test, saying why.
	Write func(t *testing.T, v disk.Volume, offset, n int64, fill byte)
}

const (
	baseBytes = 4 << 20
	maxFresh  = 1 << 20 // a clone allocates no more than this many bytes
)

// Run runs the suite.
func (s Suite) Run(t *testing.T) {
	t.Run("clone reads as its base", s.testClone)
	t.Run("writes stay in the clone", s.testWrites)
	t.Run("remove", s.testRemove)
	t.Run("clone replaces what an earlier one left", s.testReplace)
	t.Run("clones side by side", s.testMany)
	t.Run("cost does not grow with the base", s.testCost)
	t.Run("sizes that make no sense", s.testSizes)
	t.Run("a cancelled clone", s.testCancelled)
	t.Run("a full filesystem", s.testFull)
}

// newBase writes a base image with content in its first and last 64 KiB.
func newBase(t *testing.T, dir string) disk.Base {
	t.Helper()
	path := filepath.Join(dir, "base image, raw.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pattern := bytes.Repeat([]byte("banger base "), 64<<10/12)
	for _, at := range []int64{0, baseBytes - int64(len(pattern))} {
		if _, err := f.WriteAt(pattern, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o444); err != nil {
		t.Fatal(err)
	}
	return disk.Base{Path: path, Bytes: baseBytes}
}

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func (s Suite) clone(t *testing.T, base disk.Base, spec disk.Spec) disk.Volume {
	t.Helper()
	v, err := s.Driver.Clone(t.Context(), base, spec)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// wantEmpty fails the test unless dir holds nothing.
func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left", e.Name())
	}
}

func (s Suite) testClone(t *testing.T) {
	base, dir := newBase(t, t.TempDir()), t.TempDir()
	v := s.clone(t, base, disk.Spec{Dir: dir, Bytes: 3*baseBytes + 1})
	if v.Driver != s.Driver.Name() || v.VirtualBytes != 3*baseBytes+disk.SectorBytes || (v.Format != "raw" && v.Format != "qcow2") {
		t.Errorf("volume %+v", v)
	}
	if !strings.HasPrefix(v.Path, dir+"/") {
		t.Errorf("the volume's path %s is not in %s", v.Path, dir)
	}
	if info, err := os.Stat(v.Path); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("others can open the volume: %v, %v", info.Mode(), err)
	}
	want, err := os.ReadFile(base.Path)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Read(t, v, 0, baseBytes); !bytes.Equal(got, want) {
		t.Error("the clone does not read as its base")
	}
	beyond := s.Read(t, v, baseBytes, v.VirtualBytes-baseBytes)
	if len(bytes.Trim(beyond, "\x00")) != 0 {
		t.Error("the clone is not zero beyond its base")
	}
}

func (s Suite) testWrites(t *testing.T) {
	base := newBase(t, t.TempDir())
	before := sum(t, base.Path)
	a := s.clone(t, base, disk.Spec{Dir: t.TempDir(), Bytes: 2 * baseBytes})
	b := s.clone(t, base, disk.Spec{Dir: t.TempDir()})
	fresh, err := s.Driver.Usage(a)
	if err != nil {
		t.Fatal(err)
	}
	const n = 1 << 20
	s.Write(t, a, 512, 4096, 0xaa)
	s.Write(t, a, 2*baseBytes-n, n, 0xbb)
	s.Write(t, b, 512, 4096, 0xcc)
	for _, c := range []struct {
		v         disk.Volume
		at, bytes int64
		want      byte
	}{{a, 512, 4096, 0xaa}, {a, 2*baseBytes - n, n, 0xbb}, {b, 512, 4096, 0xcc}} {
		if got := s.Read(t, c.v, c.at, c.bytes); !bytes.Equal(got, bytes.Repeat([]byte{c.want}, int(c.bytes))) {
			t.Errorf("%s at %d does not read back", c.v.Path, c.at)
		}
	}
	if got := s.Read(t, a, 0, 512); !bytes.HasPrefix(got, []byte("banger base ")) {
		t.Error("a write has changed what lies beside it")
	}
	if got := sum(t, base.Path); got != before {
		t.Error("the base has changed")
	}
	used, err := s.Driver.Usage(a)
	if err != nil || used < fresh+n {
		t.Errorf("usage %d after writing %d, was %d, %v", used, n+4096, fresh, err)
	}
}

func (s Suite) testRemove(t *testing.T) {
	base, dir := newBase(t, t.TempDir()), t.TempDir()
	other := filepath.Join(dir, "console.log")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	v := s.clone(t, base, disk.Spec{Dir: dir})
	for range 2 {
		if err := s.Driver.Remove(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(other); err != nil {
		t.Error("remove has taken a file that is not the driver's")
	}
	if _, err := s.Driver.Usage(v); errs.KindOf(err) != errs.NotFound {
		t.Errorf("usage of a removed volume: %v", err)
	}
	if err := s.Driver.Remove(t.Context(), filepath.Join(dir, "never")); err != nil {
		t.Errorf("a directory that is not there: %v", err)
	}
}

func (s Suite) testReplace(t *testing.T) {
	base, dir := newBase(t, t.TempDir()), t.TempDir()
	v := s.clone(t, base, disk.Spec{Dir: dir})
	s.Write(t, v, 0, 4096, 0xaa)
	v = s.clone(t, base, disk.Spec{Dir: dir, Bytes: 2 * baseBytes})
	if got := s.Read(t, v, 0, 512); !bytes.HasPrefix(got, []byte("banger base ")) {
		t.Error("the new clone shows what was written to the old one")
	}
	if err := s.Driver.Remove(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, dir)
}

func (s Suite) testMany(t *testing.T) {
	const n = 50
	base, root := newBase(t, t.TempDir()), t.TempDir()
	before := sum(t, base.Path)
	failed := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			dir := filepath.Join(root, fmt.Sprint(i))
			if failed[i] = os.Mkdir(dir, 0o700); failed[i] != nil {
				return
			}
			v, err := s.Driver.Clone(t.Context(), base, disk.Spec{Dir: dir})
			if err == nil {
				_, err = s.Driver.Usage(v)
			}
			failed[i] = errors.Join(err, s.Driver.Remove(t.Context(), dir), os.Remove(dir))
		})
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Error(err)
	}
	if sum(t, base.Path) != before {
		t.Error("the base has changed")
	}
	wantEmpty(t, root)
}

func (s Suite) testCost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sparse")
	const huge = 1 << 40
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, huge); err != nil {
		t.Skipf("SKIP: this filesystem has no sparse file of 1 TiB: %v", err)
	}
	v := s.clone(t, disk.Base{Path: path, Bytes: huge}, disk.Spec{Dir: t.TempDir(), Bytes: 16 * huge})
	used, err := s.Driver.Usage(v)
	if err != nil || used > maxFresh {
		t.Errorf("a clone of 1 TiB takes %d bytes, %v", used, err)
	}
}

func (s Suite) testSizes(t *testing.T) {
	base, dir := newBase(t, t.TempDir()), t.TempDir()
	for _, bytes := range []int64{-1, 1, baseBytes - 1, disk.MaxBytes + 1, 1 << 62} {
		if v, err := s.Driver.Clone(t.Context(), base, disk.Spec{Dir: dir, Bytes: bytes}); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%d bytes: %+v, %v", bytes, v, err)
		}
	}
	wantEmpty(t, dir)
}

func (s Suite) testCancelled(t *testing.T) {
	base, dir := newBase(t, t.TempDir()), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v, err := s.Driver.Clone(ctx, base, disk.Spec{Dir: dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", v, err)
	}
	wantEmpty(t, dir)
}

func (s Suite) testFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: mounting a small filesystem to fill needs root")
	}
	base, dir := newBase(t, t.TempDir()), t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("SKIP: no tmpfs can be mounted here: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 252<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := s.Driver.Clone(t.Context(), base, disk.Spec{Dir: dir})
	if errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "" {
		t.Errorf("a clone on a full filesystem: %+v, %v", v, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, dir)
	if _, err := s.Driver.Clone(t.Context(), base, disk.Spec{Dir: dir}); err != nil {
		t.Errorf("once there is room: %v", err)
	}
}
