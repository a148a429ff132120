package vm

import (
	"context"
	"fmt"
	"time"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/op"
)

const (
	// minFree is the free space, in bytes, below which no VM is made or started: less than
	// what the guest's first minute writes.
	minFree = 16 << 20

	// lowFree is the free space below which there is a warning.
	lowFree = 1 << 30
)

// Disks makes root disks; see [disk.Set], which does all but choose.
type Disks interface {
	// Choose finds the driver for what a backend can read.
	Choose(ctx context.Context, backend hypervisor.Backend, want string, base disk.Base, dir string) (disk.Choice, error)
	Clone(ctx context.Context, driver string, base disk.Base, spec disk.Spec) (disk.Volume, error)
	Copy(ctx context.Context, v disk.Volume, home disk.Home) (disk.Volume, error)
	Attach(ctx context.Context, home disk.Home, v disk.Volume) (disk.Attached, error)
	Detach(ctx context.Context, home disk.Home) error
	Check(home disk.Home) error
	Remove(ctx context.Context, home disk.Home) error
	Usage(v disk.Volume) (disk.Usage, error)
	Extents(v disk.Volume, yield func(offset, bytes int64)) error
}

func (m *Manager) home(id string) disk.Home { return disk.Home{ID: id, Dir: m.dir(id)} }

// makeDisk makes the root disk of a VM whose directory exists.
func (m *Manager) makeDisk(ctx context.Context, o *op.Operation, v VM) (disk.Volume, error) {
	if err := m.checkSpace(o, v); err != nil {
		return disk.Volume{}, err
	}
	if v.Spec.Snapshot != "" {
		// Did it lie on the snapshot's, each snapshot of a VM of a snapshot would be a layer more.
		return m.Disks.Copy(ctx, v.Base.Thaw(), m.home(v.ID))
	}
	choice, err := m.Disks.Choose(ctx, v.Spec.Backend, v.Spec.DiskDriver, v.Base, m.dir(v.ID))
	if err != nil {
		return disk.Volume{}, err
	}
	begin := time.Now()
	d, err := m.Disks.Clone(ctx, choice.Driver, v.Base, disk.Spec{Home: m.home(v.ID), Bytes: v.Spec.DiskBytes})
	if err == nil && choice.LastResort {
		o.Warn(fmt.Sprintf("the disk of VM %s is a whole copy of its image: %d MiB in %.1f s (%s)",
			v.Name, m.DiskUsage(VM{Disk: d}).AllocatedBytes>>20, time.Since(begin).Seconds(), choice.Why))
	}
	return d, err
}

// checkSpace refuses to promise a disk where the host has no room for what is written to it,
// and warns where there is little. errs.Unavailable
func (m *Manager) checkSpace(o *op.Operation, v VM) error {
	dir := m.dir(v.ID)
	free, err := host.FreeBytes(dir)
	switch {
	case err != nil:
		return err
	case free < minFree:
		return errs.New(errs.Unavailable, "there is no space for VM %s: %d MiB are free in %s", v.Name, free>>20, dir).
			Try("free some: banger rm removes VMs, banger image rm images, banger prune what nothing needs")
	case free < lowFree:
		o.Warn(fmt.Sprintf("only %d MiB are free in %s; a VM that needs more is paused", free>>20, dir))
	}
	return nil
}

// attachDisk makes what the VM's machine opens of its disk. The row of it is pending.
func (m *Manager) attachDisk(ctx context.Context, v VM) (hypervisor.Disk, error) {
	a, err := m.Disks.Attach(ctx, m.home(v.ID), v.Disk)
	if err != nil {
		return hypervisor.Disk{}, err
	}
	return *machineDisk(&a), nil
}

func machineDisk(a *disk.Attached) *hypervisor.Disk {
	if a == nil {
		return nil
	}
	return &hypervisor.Disk{Path: a.Path, Format: a.Format, Backing: machineDisk(a.On)}
}

// DiskUsage tells what the VM's disk takes of the host.
func (m *Manager) DiskUsage(v VM) disk.Usage {
	u, err := m.usages.of(v.Disk, m.Disks.Usage)
	if err != nil {
		return disk.Usage{} // it is not made yet, or is being taken away
	}
	return u
}

// halted records that a VM's machine has stopped its CPUs by itself, for the reason given.
func (m *Manager) halted(id string, r *running, why string) error {
	v, unlock, err := m.lock(m.ctx, id, "paused by its machine")
	if errs.KindOf(err) == errs.NotFound || m.ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if current, err := m.machineOf(v); err != nil || current != r || v.State != Running {
		return nil
	}
	m.Log.Warn("machine halted", "vm", id, "name", v.Name, "reason", why)
	if lost := m.Disks.Check(m.home(id)); lost != nil { // no write can ever succeed
		_, err := m.settle(m.ctx, v, Failed, lost.Error())
		return err
	}
	_, err = m.update(m.ctx, id, "disk", func(x *VM) error {
		return x.To(Paused, "a write to its disk failed: "+why+"; make room, then: banger resume "+x.Name)
	})
	return err
}
