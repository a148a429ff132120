package daemon

import (
	"context"
	"path/filepath"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/disk/copy"
	"banger/internal/disk/dm"
	"banger/internal/disk/dm/devmapper"
	"banger/internal/disk/qcow2"
	"banger/internal/disk/reflink"
	"banger/internal/hypervisor"
)

// disks are the drivers of root disks.
type disks struct{ disk.Set }

func newDisks() disks {
	return disks{disk.Set{
		Drivers: []disk.Driver{dm.New(devmapper.New(devmapper.Host)), reflink.New(), qcow2.Driver{}, copy.New()},
	}}
}

// orders are what the backends are best served with. QEMU reads block devices too, but files
// need no privilege and no kernel object. Firecracker reads raw disks only, and a
// device-mapper snapshot is one that works on any filesystem of the host's.
var orders = map[hypervisor.Backend][]string{
	hypervisor.QEMU:        {"reflink", "qcow2", "copy"},
	hypervisor.Firecracker: {"dm", "reflink", "copy"},
}

// Choose implements vm.Disks.
func (d disks) Choose(ctx context.Context, backend hypervisor.Backend, want string, base disk.Base, dir string) (disk.Choice, error) {
	set := d.Set
	set.Order = orders[backend]
	return set.Choose(ctx, want, base, dir)
}

// checkDisks tells which disk driver VMs get, and why.
func (d *Daemon) checkDisks(ctx context.Context) api.Check {
	var base disk.Base
	if i, err := d.library.Image(d.opts.Config.Image); err == nil {
		base = disk.Base{Path: i.Path, Bytes: i.VirtualBytes}
	}
	backend := d.usualBackend(ctx)
	choice, err := newDisks().Choose(ctx, backend, disk.Auto, base, filepath.Clean(d.opts.Config.StateDir))
	if err != nil {
		return finding("disks", failed, "", err)
	}
	status := ok
	if choice.LastResort {
		status = warning
	}
	return finding("disks", status, choice.Driver+", "+choice.Why, nil)
}
