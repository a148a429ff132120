package disk_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/disk"
	"banger/internal/disk/copy"
	"banger/internal/disk/qcow2"
	"banger/internal/host"
)

// TestFlatten writes into a volume of each file driver and reads the flat copy.
func TestFlatten(t *testing.T) {
	if _, err := host.LookPath("qemu-io"); err != nil {
		t.Skip("SKIP: this host has no qemu-io")
	}
	base := bytes.Repeat([]byte("base"), 1<<18) // 1 MiB
	basePath := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(basePath, base, 0o600); err != nil {
		t.Fatal(err)
	}
	b := disk.Base{Path: basePath, Bytes: int64(len(base))}
	for _, d := range []disk.Driver{qcow2.Driver{}, copy.New()} {
		t.Run(d.Name(), func(t *testing.T) {
			home := disk.Home{ID: "0123456789ab", Dir: t.TempDir()}
			v, err := d.Clone(t.Context(), b, disk.Spec{Home: home, Bytes: 64 << 20})
			if err != nil {
				t.Fatal(err)
			}
			a, err := d.Attach(t.Context(), home, v)
			if err != nil {
				t.Fatal(err)
			}
			if err := host.Run(t.Context(), host.Command{Path: "qemu-io", Args: []string{"-f", a.Format, "-c", "write -P 0x61 512k 4k", "-c", "write -P 0x62 32M 4k", a.Path}}); err != nil {
				t.Fatal(err)
			}
			want := make([]byte, 64<<20)
			copyAt := func(off int, b []byte) { _ = append(want[:off], b...) }
			copyAt(0, base)
			copyAt(512<<10, bytes.Repeat([]byte{0x61}, 4096))
			copyAt(32<<20, bytes.Repeat([]byte{0x62}, 4096))
			flat := filepath.Join(t.TempDir(), "flat")
			if err := disk.Flatten(t.Context(), a, flat, nil); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(flat)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("the flat copy differs (%v, %d bytes)", err, len(got))
			}
			f, err := os.Open(flat)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if n, err := disk.Allocated(f); err != nil || n > 2<<20 {
				t.Errorf("it takes %d bytes, %v", n, err)
			}
			if err := disk.Flatten(t.Context(), a, flat, nil); !errors.Is(err, os.ErrExist) {
				t.Errorf("onto a file that is there: %v", err)
			}
			cancelled, cancel := context.WithCancel(t.Context())
			cancel()
			other := filepath.Join(t.TempDir(), "other")
			if err := disk.Flatten(cancelled, a, other, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
			if _, err := os.Stat(other); err == nil {
				t.Error("a cancelled copy is left")
			}
			if err := disk.Flatten(t.Context(), a, filepath.Join(t.TempDir(), "none", "x"), nil); err == nil || !strings.Contains(err.Error(), "no such file") {
				t.Errorf("into nowhere: %v", err)
			}
		})
	}
}
