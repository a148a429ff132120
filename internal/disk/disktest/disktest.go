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

	"banger/internal/disk"
	"banger/internal/errs"
)

// Suite is a driver to test and the means to use its volumes as a VM would.
type Suite struct {
	Driver disk.Driver
	IO     IO

	// Root is a directory on the filesystem to test on; empty: that of the tests.
	Root string

	// Small mounts an empty filesystem that the driver works on and that is quickly filled.
	Small func(t *testing.T) string

	// SharesBlocks says that clones are on their base's filesystem and take no block of it.
	SharesBlocks bool
}

const (
	baseBytes = 4 << 20
	maxFresh  = 1 << 20 // a clone allocates no more than this many bytes
)

// Run runs the suite.
func (s Suite) Run(t *testing.T) {
	t.Run("clone reads as its base", s.testClone)
	t.Run("writes stay in the clone", s.testWrites)
	t.Run("reopened after a crash", s.testCrash)
	t.Run("what is discarded is given back", s.testTrim)
	t.Run("remove", s.testRemove)
	t.Run("clone replaces what an earlier one left", s.testReplace)
	t.Run("clones side by side", s.testMany)
	t.Run("a clone of a clone", s.testFrozen)
	t.Run("a copy", s.testCopy)
	t.Run("cost does not grow with the base", s.testCost)
	t.Run("sizes that make no sense", s.testSizes)
	t.Run("a cancelled clone", s.testCancelled)
	t.Run("a base that is not what it was", s.testBase)
	t.Run("a file cut by hand", s.testCut)
	t.Run("no room for a clone", s.testNoRoom)
	t.Run("no room for what is written", s.testFull)
}

// dir makes a directory on the filesystem under test.
func (s Suite) dir(t *testing.T) string {
	t.Helper()
	if s.Root == "" {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(s.Root, "test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

var ids struct {
	sync.Mutex
	n int
}

// home makes the home of a VM in dir, whose volume goes with the test.
func (s Suite) home(t *testing.T, dir string) disk.Home {
	t.Helper()
	ids.Lock()
	defer ids.Unlock()
	ids.n++
	h := disk.Home{ID: fmt.Sprintf("%06x%06x", os.Getpid(), ids.n), Dir: dir}
	t.Cleanup(func() {
		if err := s.Driver.Remove(context.WithoutCancel(t.Context()), h); err != nil {
			t.Error(err)
		}
	})
	return h
}

// newBase writes a base image with content in its first and last 64 KiB, which begins as an
// overlay would that names a file of the host's: it is raw all the same.
func newBase(t *testing.T, dir string) disk.Base {
	t.Helper()
	path := filepath.Join(dir, "base image, raw.img")
	b := make([]byte, baseBytes)
	pattern := bytes.Repeat([]byte("banger base "), 64<<10/12)
	copy(b, pattern)
	copy(b[baseBytes-len(pattern):], pattern)
	copy(b, "QFI\xfb\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x0b")
	copy(b[256:], "/etc/shadow")
	if err := os.WriteFile(path, b, 0o444); err != nil {
		t.Fatal(err)
	}
	return disk.Base{Path: path, Bytes: baseBytes, SHA256: sum(t, path)}
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

// wantBase fails the test if the base has changed.
func wantBase(t *testing.T, base disk.Base) {
	t.Helper()
	if sum(t, base.Path) != base.SHA256 {
		t.Error("the base has changed")
	}
}

func (s Suite) clone(t *testing.T, base disk.Base, spec disk.Spec) disk.Volume {
	t.Helper()
	v, err := s.Driver.Clone(t.Context(), base, spec)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (s Suite) attach(t *testing.T, h disk.Home, v disk.Volume) disk.Attached {
	t.Helper()
	a, err := s.Driver.Attach(t.Context(), h, v)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// cloned makes a volume and attaches it.
func (s Suite) cloned(t *testing.T, base disk.Base, bytes int64) (disk.Home, disk.Volume, disk.Attached) {
	t.Helper()
	h := s.home(t, s.dir(t))
	v := s.clone(t, base, disk.Spec{Home: h, Bytes: bytes})
	return h, v, s.attach(t, h, v)
}

func (s Suite) write(t *testing.T, a disk.Attached, offset, n int64, fill byte) {
	t.Helper()
	if err := s.IO.Write(t, a, offset, n, fill); err != nil {
		t.Fatal(err)
	}
}

// want fails the test unless n bytes at offset are all fill.
func (s Suite) want(t *testing.T, a disk.Attached, offset, n int64, fill byte) {
	t.Helper()
	if got := s.IO.Read(t, a, offset, n); !bytes.Equal(got, bytes.Repeat([]byte{fill}, int(n))) {
		t.Errorf("%s does not read as %#x at %d", a.Path, fill, offset)
	}
}

func (s Suite) wantBaseAt(t *testing.T, a disk.Attached) {
	t.Helper()
	if got := s.IO.Read(t, a, 0, 512); !bytes.HasPrefix(got, []byte("QFI\xfb")) || !bytes.Contains(got, []byte("banger base ")) {
		t.Errorf("%s does not begin as its base", a.Path)
	}
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
	base := newBase(t, s.dir(t))
	h, v, a := s.cloned(t, base, 3*baseBytes+1)
	if v.Driver != s.Driver.Name() || v.VirtualBytes != 3*baseBytes+disk.SectorBytes || (a.Format != "raw" && a.Format != "qcow2") {
		t.Errorf("volume %+v attached as %+v", v, a)
	}
	if !strings.HasPrefix(v.Path, h.Dir+"/") {
		t.Errorf("the volume's path %s is not in %s", v.Path, h.Dir)
	}
	for _, path := range []string{v.Path, a.Path} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o007 != 0 {
			t.Errorf("others can open the volume: %v, %v", info.Mode(), err)
		}
	}
	if err := v.Sync(); err != nil {
		t.Error(err)
	}
	want, err := os.ReadFile(base.Path)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.IO.Read(t, a, 0, baseBytes); !bytes.Equal(got, want) {
		t.Error("the clone does not read as its base")
	}
	s.want(t, a, baseBytes, v.VirtualBytes-baseBytes, 0)
}

func (s Suite) testWrites(t *testing.T) {
	base := newBase(t, s.dir(t))
	_, va, a := s.cloned(t, base, 2*baseBytes)
	_, _, b := s.cloned(t, base, 0)
	fresh, err := s.Driver.Usage(va)
	if err != nil {
		t.Fatal(err)
	}
	const n = 1 << 20
	s.write(t, a, 512, 4096, 0xaa)
	s.write(t, a, 2*baseBytes-n, n, 0xbb)
	s.write(t, b, 512, 4096, 0xcc)
	s.want(t, a, 512, 4096, 0xaa)
	s.want(t, a, 2*baseBytes-n, n, 0xbb)
	s.want(t, b, 512, 4096, 0xcc)
	s.wantBaseAt(t, a)
	wantBase(t, base)
	used, err := s.Driver.Usage(va)
	if err != nil || used.AllocatedBytes < fresh.AllocatedBytes+n {
		t.Errorf("usage %+v after writing %d, was %+v, %v", used, n+4096, fresh, err)
	}
	if n := s.held(t, va, 2*baseBytes-n, n); n != 1<<20 {
		t.Errorf("%d bytes are said to be the volume's own, of %d written", n, 1<<20)
	}
	if c := used.ChangedBytes; c != -1 && (c < n+4096 || c > n+256<<10) {
		t.Errorf("%d bytes are said to have changed, of %d written", c, n+4096)
	}
}

// held adds up what of a range of the disk the volume holds itself, in bytes.
func (s Suite) held(t *testing.T, v disk.Volume, offset, n int64) (sum int64) {
	t.Helper()
	err := s.Driver.Extents(v, func(at, bytes int64) {
		sum += max(0, min(at+bytes, offset+n)-max(at, offset))
	})
	if err != nil {
		t.Error(err)
	}
	return sum
}

func (s Suite) testCrash(t *testing.T) {
	base := newBase(t, s.dir(t))
	h, v, a := s.cloned(t, base, 0)
	s.IO.WriteAndDie(t, a, 1<<20, 64<<10, 0xaa)
	a = s.attach(t, h, v) // and nobody has detached it
	s.want(t, a, 1<<20, 64<<10, 0xaa)
	s.wantBaseAt(t, a)
	s.write(t, a, 2<<20, 4096, 0xbb)
	for range 2 {
		if err := s.Driver.Detach(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	a = s.attach(t, h, v)
	s.want(t, a, 1<<20, 64<<10, 0xaa)
	s.want(t, a, 2<<20, 4096, 0xbb)
	wantBase(t, base)
}

func (s Suite) testTrim(t *testing.T) {
	_, v, a := s.cloned(t, newBase(t, s.dir(t)), 16<<20)
	const at, n = 8 << 20, 4 << 20
	s.write(t, a, at, n, 0xaa)
	before, err := s.Driver.Usage(v)
	if err != nil {
		t.Fatal(err)
	}
	s.IO.Discard(t, a, at, n)
	after, err := s.Driver.Usage(v)
	if err != nil {
		t.Fatal(err)
	}
	if freed := before.AllocatedBytes - after.AllocatedBytes; freed < n-n/16 {
		t.Errorf("%d bytes came back of %d", freed, n)
	}
	s.write(t, a, at, 4096, 0xbb)
	s.want(t, a, at, 4096, 0xbb)
}

func (s Suite) testRemove(t *testing.T) {
	base, dir := newBase(t, s.dir(t)), s.dir(t)
	h := s.home(t, dir)
	other := filepath.Join(dir, "console.log")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	v := s.clone(t, base, disk.Spec{Home: h})
	s.attach(t, h, v)
	for range 2 {
		if err := s.Driver.Remove(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(other); err != nil {
		t.Error("remove has taken a file that is not the driver's")
	}
	if _, err := s.Driver.Usage(v); errs.KindOf(err) != errs.NotFound {
		t.Errorf("usage of a removed volume: %v", err)
	}
	if _, err := s.Driver.Attach(t.Context(), h, v); errs.KindOf(err) != errs.NotFound {
		t.Errorf("attach a removed volume: %v", err)
	}
	if err := s.Driver.Remove(t.Context(), disk.Home{ID: h.ID, Dir: filepath.Join(dir, "never")}); err != nil {
		t.Errorf("a directory that is not there: %v", err)
	}
	half := v.Path + disk.Unfinished
	if err := os.WriteFile(half, []byte("half"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := s.Driver.Remove(t.Context(), h); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(half); err == nil {
		t.Error("what an interrupted clone has left is still there")
	}
}

func (s Suite) testReplace(t *testing.T) {
	base := newBase(t, s.dir(t))
	h, v, a := s.cloned(t, base, 0)
	s.write(t, a, 0, 4096, 0xaa)
	if err := s.Driver.Detach(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(v.Path+disk.Unfinished, []byte("half"), 0o666); err != nil {
		t.Fatal(err)
	}
	v = s.clone(t, base, disk.Spec{Home: h, Bytes: 2 * baseBytes})
	s.wantBaseAt(t, s.attach(t, h, v))
	if err := s.Driver.Remove(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, h.Dir)
}

func (s Suite) testMany(t *testing.T) {
	const n = 50
	base, root := newBase(t, s.dir(t)), s.dir(t)
	failed := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		h := s.home(t, filepath.Join(root, fmt.Sprint(i)))
		wg.Go(func() {
			if failed[i] = os.Mkdir(h.Dir, 0o700); failed[i] != nil {
				return
			}
			v, err := s.Driver.Clone(t.Context(), base, disk.Spec{Home: h})
			if err == nil {
				_, err = s.Driver.Attach(t.Context(), h, v)
			}
			if err == nil {
				_, err = s.Driver.Usage(v)
			}
			failed[i] = errors.Join(err, s.Driver.Remove(t.Context(), h), os.Remove(h.Dir))
		})
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Error(err)
	}
	wantBase(t, base)
	wantEmpty(t, root)
}

// A template is a volume that nobody writes any more, and VMs are clones of it.
func (s Suite) testFrozen(t *testing.T) {
	base := newBase(t, s.dir(t))
	ht, template, at := s.cloned(t, base, 2*baseBytes)
	s.write(t, at, 1<<20, 64<<10, 0xaa)
	s.write(t, at, baseBytes+1<<20, 4096, 0xbb)
	if err := s.Driver.Detach(t.Context(), ht); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(template.Path, 0o400); err != nil {
		t.Fatal(err)
	}
	before, frozen := sum(t, template.Path), template.Freeze()
	if err := s.Driver.Probe(t.Context(), frozen, ht.Dir); err != nil {
		t.Error(err)
	}
	_, _, a := s.cloned(t, frozen, 3*baseBytes)
	_, _, b := s.cloned(t, frozen, 0)
	s.write(t, a, 1<<20, 4096, 0xcc)
	s.write(t, a, 3*baseBytes-4096, 4096, 0xdd)
	s.want(t, a, 1<<20, 4096, 0xcc)
	s.want(t, a, 3*baseBytes-4096, 4096, 0xdd)
	for _, x := range []disk.Attached{a, b} {
		s.wantBaseAt(t, x)
		s.want(t, x, 1<<20+4096, 60<<10, 0xaa)
		s.want(t, x, baseBytes+1<<20, 4096, 0xbb)
		s.want(t, x, baseBytes+2<<20, 4096, 0)
	}
	s.want(t, b, 1<<20, 4096, 0xaa)
	if sum(t, template.Path) != before {
		t.Error("the frozen volume has changed")
	}
	wantBase(t, base)
}

// A copy has the changes of a volume and needs that no more.
func (s Suite) testCopy(t *testing.T) {
	base := newBase(t, s.dir(t))
	h, v, a := s.cloned(t, base, 2*baseBytes)
	s.write(t, a, 1<<20, 64<<10, 0xaa)
	other := s.home(t, s.dir(t))
	c, err := s.Driver.Copy(t.Context(), v, other)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Driver.Attach(t.Context(), other, c)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, a, 1<<20, 4096, 0xbb)
	s.write(t, b, 1<<20+4096, 4096, 0xcc)
	s.want(t, a, 1<<20, 4096, 0xbb)
	s.want(t, a, 1<<20+4096, 4096, 0xaa)
	if err := s.Driver.Remove(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	s.wantBaseAt(t, b)
	s.want(t, b, 1<<20, 4096, 0xaa)
	s.want(t, b, 1<<20+4096, 4096, 0xcc)
	s.want(t, b, 1<<20+8192, 56<<10, 0xaa)
	wantBase(t, base)

	if c, err := s.Driver.Copy(t.Context(), v, other); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a copy of a volume that is gone: %+v, %v", c, err)
	}
}

func (s Suite) testCost(t *testing.T) {
	path := filepath.Join(s.dir(t), "sparse")
	const huge = 1 << 40
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, huge); err != nil {
		t.Skipf("SKIP: this filesystem has no sparse file of 1 TiB: %v", err)
	}
	_, v, _ := s.cloned(t, disk.Base{Path: path, Bytes: huge}, 4*huge)
	used, err := s.Driver.Usage(v)
	if err != nil || used.AllocatedBytes > maxFresh {
		t.Errorf("a clone of 1 TiB takes %d bytes, %v", used.AllocatedBytes, err)
	}
}

func (s Suite) testSizes(t *testing.T) {
	base, h := newBase(t, s.dir(t)), s.home(t, s.dir(t))
	for _, bytes := range []int64{-1, 1, baseBytes - 1, disk.MaxBytes + 1, 1 << 62} {
		if v, err := s.Driver.Clone(t.Context(), base, disk.Spec{Home: h, Bytes: bytes}); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%d bytes: %+v, %v", bytes, v, err)
		}
	}
	wantEmpty(t, h.Dir)
}

func (s Suite) testCancelled(t *testing.T) {
	base, h := newBase(t, s.dir(t)), s.home(t, s.dir(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v, err := s.Driver.Clone(ctx, base, disk.Spec{Home: h}); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", v, err)
	}
	wantEmpty(t, h.Dir)
}
