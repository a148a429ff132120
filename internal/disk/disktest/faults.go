package disktest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/errs"
)

func (s Suite) testBase(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"gone":        os.Remove,
		"longer":      func(p string) error { return os.Truncate(p, baseBytes+512) },
		"shorter":     func(p string) error { return os.Truncate(p, baseBytes-512) },
		"a directory": func(p string) error { os.Remove(p); return os.Mkdir(p, 0o700) },
		"a FIFO":      func(p string) error { os.Remove(p); return unix.Mkfifo(p, 0o600) },
		"a device":    func(p string) error { os.Remove(p); return os.Symlink("/dev/zero", p) },
	} {
		base := newBase(t, s.dir(t))
		h, v, a := s.cloned(t, base, 0)
		if err := change(base.Path); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Driver.Clone(t.Context(), base, disk.Spec{Home: s.home(t, s.dir(t))}); errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), base.Path) {
			t.Errorf("%s: cloned: %+v, %v", name, got, err)
		}
		if name == "gone" && a.Format == "raw" { // what runs goes on
			s.wantBaseAt(t, a)
		}
		// A volume that reads through to its base says so; one that is whole needs none.
		_, err := s.Driver.Attach(t.Context(), h, v)
		if v.On == nil && err != nil || v.On != nil && errs.KindOf(err) != errs.Unavailable {
			t.Errorf("%s: attached: %v", name, err)
		}
	}
}

// testCut has someone truncate the file of the changes.
func (s Suite) testCut(t *testing.T) {
	base := newBase(t, s.dir(t))
	for _, bytes := range []int64{0, 512, 64 << 10} {
		h, v, a := s.cloned(t, base, 0)
		s.write(t, a, 1<<20, 4096, 0xaa)
		if err := s.Driver.Detach(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(v.Path, bytes); err != nil {
			t.Fatal(err)
		}
		a, err := s.Driver.Attach(t.Context(), h, v)
		if err == nil || !strings.Contains(err.Error(), v.Path) {
			t.Errorf("a file cut to %d bytes is attached: %+v, %v", bytes, a, err)
		}
		if err := s.Driver.Remove(t.Context(), h); err != nil {
			t.Errorf("a file cut to %d bytes can't be removed: %v", bytes, err)
		}
	}
	wantBase(t, base)
}

// testNoRoom clones where there is no room for even a header.
func (s Suite) testNoRoom(t *testing.T) {
	root := s.Small(t)
	h := s.home(t, filepath.Join(root, "vm"))
	if err := os.Mkdir(h.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	base := s.smallBase(t, root)
	fillers := fill(t, root)
	v, err := s.Driver.Clone(t.Context(), base, disk.Spec{Home: h})
	switch {
	case err == nil && s.SharesBlocks:
		if err := s.Driver.Remove(t.Context(), h); err != nil {
			t.Error(err)
		}
	case errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "":
		t.Errorf("a clone on a full filesystem: %+v, %v", v, err)
	}
	wantEmpty(t, h.Dir)
	if err := os.RemoveAll(fillers); err != nil {
		t.Fatal(err)
	}
	v = s.clone(t, base, disk.Spec{Home: h})
	s.wantBaseAt(t, s.attach(t, h, v))
	wantBase(t, base)
}

// smallBase makes a base: where that is shared, on the small filesystem, which then is full
// around the base too.
func (s Suite) smallBase(t *testing.T, root string) disk.Base {
	t.Helper()
	if !s.SharesBlocks {
		return newBase(t, s.dir(t))
	}
	return newBase(t, root)
}

// testFull writes to a volume until its filesystem is full.
func (s Suite) testFull(t *testing.T) {
	root := s.Small(t)
	base := s.smallBase(t, root)
	h := s.home(t, filepath.Join(root, "vm"))
	if err := os.Mkdir(h.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	v := s.clone(t, base, disk.Spec{Home: h, Bytes: 64 << 20})
	a := s.attach(t, h, v)
	s.write(t, a, 2<<20, 64<<10, 0xaa)
	fillers := fill(t, root)
	if err := s.IO.Write(t, a, 4<<20, 16<<20, 0xbb); err == nil {
		t.Fatal("16 MiB were written to a full filesystem")
	}
	wantBase(t, base)
	if err := os.RemoveAll(fillers); err != nil {
		t.Fatal(err)
	}
	if err := s.Driver.Detach(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	a = s.attach(t, h, v)
	s.want(t, a, 2<<20, 64<<10, 0xaa)
	s.wantBaseAt(t, a)
	s.write(t, a, 4<<20, 1<<20, 0xbb)
	s.want(t, a, 4<<20, 1<<20, 0xbb)
}
