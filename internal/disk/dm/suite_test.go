package dm

import (
	"context"
	"os"
	"strings"
	"testing"

	"banger/internal/disk"
	"banger/internal/disk/disktest"
	"banger/internal/disk/dm/devmapper"
)

// host is the driver on this host's kernel.
func host(t *testing.T) *Driver {
	t.Helper()
	d := New(devmapper.New(devmapper.Host))
	if err := d.Probe(t.Context(), disk.Base{}, t.TempDir()); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	return d
}

// ext4 mounts a small filesystem of the kind that most hosts have.
func ext4(t *testing.T) string {
	return disktest.Mount(t, "ext4", 32<<20, "mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal")
}

func TestConformance(t *testing.T) {
	d := host(t)
	t.Cleanup(func() { wantNoDevices(t, d) })
	disktest.Suite{Driver: d, IO: disktest.Raw{}, Small: ext4}.Run(t)
}

// wantNoDevices fails the test if a device of this process's VMs is left.
func wantNoDevices(t *testing.T, d *Driver) {
	t.Helper()
	all, err := d.mapper.List()
	if err != nil {
		t.Error(err)
	}
	for _, name := range all {
		if strings.HasPrefix(name, prefix) {
			t.Errorf("device %s is left", name)
		}
	}
}

// A disk that the kernel has given up, because the host was full, is told apart from one
// that works, and is as good as after a power cut when it is attached again.
func TestAVolumeThatIsGivenUpSaysSo(t *testing.T) {
	d, root := host(t), ext4(t)
	base := disk.Base{Path: root + "/base", Bytes: 4 << 20}
	if err := os.WriteFile(base.Path, make([]byte, base.Bytes), 0o400); err != nil {
		t.Fatal(err)
	}
	h := disk.Home{ID: "0123456789ab", Dir: root}
	v, err := d.Clone(t.Context(), base, disk.Spec{Home: h, Bytes: 128 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Remove(context.WithoutCancel(t.Context()), h); err != nil {
			t.Error(err)
		}
		wantNoDevices(t, d)
	})
	a, err := d.Attach(t.Context(), h, v)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Check(h); err != nil {
		t.Errorf("a disk that works: %v", err)
	}
	if err := (disktest.Raw{}).Write(t, a, 0, 64<<20, 0xaa); err == nil {
		t.Fatal("64 MiB were written to a filesystem of 32")
	}
	if err := d.Check(h); err == nil {
		targets, _ := d.mapper.Status(topName(h.ID))
		t.Errorf("a disk that is given up: %+v", targets)
	}
	if err := d.Detach(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Attach(t.Context(), h, v); err != nil {
		t.Error(err)
	}
	if err := d.Check(h); err != nil {
		t.Errorf("attached again: %v", err)
	}
}
