package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/image/oci"
)

// smallDisk is a filesystem in memory whose size is set, as long as the test runs.
func smallDisk(t *testing.T) (dir string, resize func(kib int)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root can mount a small filesystem")
	}
	dir = t.TempDir()
	mount := func(kib int, flags uintptr) error {
		return unix.Mount("tmpfs", dir, "tmpfs", flags, fmt.Sprintf("size=%dk,mode=755", kib))
	}
	if err := mount(64, 0); err != nil {
		t.Skipf("SKIP: this host lets nobody mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir, func(kib int) {
		t.Helper()
		if err := mount(kib, unix.MS_REMOUNT); err != nil {
			t.Fatal(err)
		}
	}
}

// imports are imports of each kind, which can be tried again.
func imports(t *testing.T) map[string]Import {
	t.Helper()
	importStore(t) // skips where the programs are not
	rootfs := debianTar(t, 4<<20)
	path := filesystem(t, map[string]string{"/sbin/init": strings.Repeat("#!", 2<<20)})
	file := filepath.Join(t.TempDir(), "rootfs.tar")
	if err := os.WriteFile(file, rootfs, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(path string) func(context.Context, string) (*oci.Source, error) {
		return func(_ context.Context, scratch string) (*oci.Source, error) {
			return oci.Open(path, scratch, oci.Choice{})
		}
	}
	const oneGroup = 128 << 20 // a group of blocks, and little to take the checksum of
	return map[string]Import{
		"tar":  {Name: "a", Bytes: oneGroup, Open: open(file)},
		"ext4": {Name: "a", Open: open(path)},
		"stream": {Name: "a", Bytes: oneGroup, Open: func(ctx context.Context, scratch string) (*oci.Source, error) {
			return fromStream(bytes.NewReader(rootfs))(ctx, scratch)
		}},
	}
}

// An import on a disk that is full somewhere on the way says so and leaves nothing; with enough
// room the next one works.
func TestImportOnAFullDisk(t *testing.T) {
	for kind, in := range imports(t) {
		t.Run(kind, func(t *testing.T) {
			dir, resize := smallDisk(t)
			s := NewStore(filepath.Join(dir, "images"), func() (string, error) { return "", errs.New(errs.NotFound, "no bundle") })
			failed := 0
			for kib := 64; ; kib += kib/2 + 64 {
				if kib > 256<<10 {
					t.Fatal("there is never enough room")
				}
				resize(kib)
				_, err := s.Import(t.Context(), in, quiet)
				if err == nil {
					break
				}
				failed++
				if errs.KindOf(err) != errs.Unavailable || !strings.Contains(errs.HintOf(err), "make room") {
					t.Errorf("with %d KiB: %v (%s)", kib, err, errs.HintOf(err))
				}
				nothingHalf(t, s, "")
			}
			if failed < 4 {
				t.Errorf("only %d failed", failed)
			}
			nothingHalf(t, s, "a")
		})
	}
}

// An import that is cancelled in any of its stages leaves nothing, and the next one works.
func TestCancelledImport(t *testing.T) {
	stages := map[string][]string{"tar": {"unpacking", "checksum"}, "stream": {"unpacking", "checksum"}, "ext4": {"copying", "checking", "checksum"}}
	for kind, in := range imports(t) {
		for _, stage := range stages[kind] {
			t.Run(kind+" "+stage, func(t *testing.T) {
				s, _ := importStore(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				_, err := s.Import(ctx, in, func(now string, _, _ int64) {
					if now == stage {
						cancel()
					}
				})
				if !errors.Is(err, context.Canceled) {
					t.Errorf("error is %v", err)
				}
				nothingHalf(t, s, "")
				if _, err := s.Import(t.Context(), in, quiet); err != nil {
					t.Errorf("the next one: %v", err)
				}
			})
		}
	}
}
