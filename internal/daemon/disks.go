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
)

// disks are the drivers of root disks, and the order in which QEMU is best served by them.
// It reads block devices too, but files need no privilege and no kernel object.
func disks() disk.Set {
	return disk.Set{
		Drivers: []disk.Driver{dm.New(devmapper.New(devmapper.Host)), reflink.New(), qcow2.Driver{}, copy.New()},
		Order:   []string{"reflink", "qcow2", "copy"},
	}
}

// checkDisks tells which disk driver VMs get, and why.
func (d *Daemon) checkDisks(ctx context.Context) api.Check {
	var base disk.Base
	if i, err := d.library.Image(d.opts.Config.Image); err == nil {
		base = disk.Base{Path: i.Path, Bytes: i.VirtualBytes}
	}
	choice, err := disks().Choose(ctx, disk.Auto, base, filepath.Clean(d.opts.Config.StateDir))
	if err != nil {
		return finding("disks", failed, "", err)
	}
	status := ok
	if choice.LastResort {
		status = warning
	}
	return finding("disks", status, choice.Driver+", "+choice.Why, nil)
}
