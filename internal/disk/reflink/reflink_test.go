package reflink

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/disk"
	"banger/internal/disk/disktest"
	"banger/internal/errs"
)

// filesystems are those that share blocks, and how an empty one of the smallest size is made.
var filesystems = map[string]func(t *testing.T) string{
	"btrfs": func(t *testing.T) string {
		return disktest.Mount(t, "btrfs", 128<<20, "mkfs.btrfs", "-q", "-M", "-n", "4096")
	},
	"xfs": func(t *testing.T) string {
		return disktest.Mount(t, "xfs", 320<<20, "mkfs.xfs", "-q", "-m", "reflink=1")
	},
}

func TestConformance(t *testing.T) {
	for name, mount := range filesystems {
		t.Run(name, func(t *testing.T) {
			disktest.Suite{Driver: New(), IO: disktest.Raw{}, Root: mount(t), Small: mount, SharesBlocks: true}.Run(t)
		})
	}
}

func TestProbeTries(t *testing.T) {
	for name, mount := range filesystems {
		t.Run(name, func(t *testing.T) {
			dir := mount(t)
			base := disk.Base{Path: filepath.Join(dir, "base"), Bytes: 4096}
			if err := os.WriteFile(base.Path, make([]byte, 4096), 0o400); err != nil {
				t.Fatal(err)
			}
			for _, b := range []disk.Base{base, {}} {
				if err := New().Probe(t.Context(), b, dir); err != nil {
					t.Errorf("%+v: %v", b, err)
				}
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
				t.Errorf("%v, %v", left, err)
			}
			elsewhere := disktest.MountTmpfs(t, "1m")
			err := New().Probe(t.Context(), base, elsewhere)
			if errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "can't share blocks") {
				t.Errorf("on another filesystem: %v", err)
			}
		})
	}
}

func TestProbeOnAFilesystemThatSharesNothing(t *testing.T) {
	dir := disktest.MountTmpfs(t, "1m")
	err := New().Probe(t.Context(), disk.Base{}, dir)
	if errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "can't share blocks") {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}
