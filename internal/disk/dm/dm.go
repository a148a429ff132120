// Package dm owns the disk driver for VMMs that want a block device: the kernel's
// device-mapper puts a snapshot on a read-only loop device of the base, which all VMs of an
// image share, and keeps each VM's changes in a sparse file.
//
// Nothing needs to be remembered of a volume's devices: their names begin with the VM's, and
// loop devices go with the last device on them.
//
// When the host's filesystem is full the kernel gives up the snapshot that it could not write
// to: the VM's disk fails, and attached again it is as after a power cut at that moment. The
// base is never touched.
package dm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"banger/internal/disk"
	"banger/internal/disk/dm/devmapper"
	"banger/internal/disk/loop"
	"banger/internal/errs"
	"banger/internal/undo"
)

const (
	name      = "dm"
	fileName  = "root.cow"
	zerosName = "root.zeros" // what a disk reads beyond its base
)

// Driver makes snapshots.
type Driver struct {
	mapper *devmapper.Control
	loops  *loop.Loops
}

// New returns the driver; mapper is where it makes its devices.
func New(mapper *devmapper.Control) *Driver { return &Driver{mapper, &loop.Loops{}} }

var _ disk.Driver = (*Driver)(nil)

// Name is "dm".
func (*Driver) Name() string { return name }

// Probe asks the kernel for what the driver is made of.
func (d *Driver) Probe(context.Context, disk.Base, string) error {
	if os.Geteuid() != 0 {
		return errs.New(errs.Unavailable, "device-mapper takes root")
	}
	for _, target := range []string{"snapshot", "linear"} {
		if err := d.mapper.HasTarget(target); errors.Is(err, fs.ErrNotExist) {
			return errs.New(errs.Unavailable, "this kernel has no device-mapper").Try("modprobe dm_snapshot")
		} else if err != nil {
			return errs.New(errs.Unavailable, "device-mapper is no good here").Because(err)
		}
	}
	return nil
}

// Clone makes root.cow in spec.Dir: a hole with a header, whatever the base's size.
func (d *Driver) Clone(ctx context.Context, base disk.Base, spec disk.Spec) (disk.Volume, error) {
	size, err := disk.VirtualBytes(base, spec)
	if err != nil {
		return disk.Volume{}, err
	}
	if err := checkBase(&base); err != nil {
		return disk.Volume{}, err
	}
	path, err := disk.MakeFile(ctx, spec.Dir, fileName, func(f *os.File) error { return writeCow(f, size) })
	if err != nil {
		return disk.Volume{}, err
	}
	return disk.Volume{Driver: name, Path: path, VirtualBytes: size, On: &base}, nil
}

// checkBase looks at a base and, with a frozen volume, at its file of changes.
func checkBase(b *disk.Base) error {
	if err := b.Check(); err != nil {
		return err
	}
	for ; b.On != nil; b = b.On {
		if b.Driver != name {
			return fmt.Errorf("%s is a disk of the driver %q, which device-mapper can't read", b.Path, b.Driver)
		}
		if err := checkFile(disk.Volume{Path: b.Path, VirtualBytes: b.Bytes}); err != nil {
			return err
		}
	}
	return nil
}

func checkFile(v disk.Volume) error {
	f, err := v.OpenFile(cowBytes(v.VirtualBytes))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := checkCow(f); err != nil {
		return v.Damaged(err)
	}
	return nil
}

func reviveFile(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(revive(f), f.Close())
}

// Copy copies the file of changes.
func (*Driver) Copy(ctx context.Context, v disk.Volume, home disk.Home) (disk.Volume, error) {
	return v.CopyTo(ctx, home.Dir, fileName)
}

// Attach makes the devices of a volume, the last of which is what the VMM opens.
func (d *Driver) Attach(ctx context.Context, home disk.Home, v disk.Volume) (_ disk.Attached, err error) {
	below, err := v.Below()
	if err != nil {
		return disk.Attached{}, err
	}
	if err := checkBase(below); err != nil {
		return disk.Attached{}, err
	}
	if err := checkFile(v); err != nil {
		return disk.Attached{}, err
	}
	if err := d.Detach(ctx, home); err != nil { // what an earlier life has left
		return disk.Attached{}, err
	}
	if err := reviveFile(v.Path); err != nil {
		return disk.Attached{}, err
	}
	var u undo.Stack
	u.Push("devices of "+home.ID, func(ctx context.Context) error { return d.Detach(ctx, home) })
	s := stack{Driver: d, home: home}
	defer s.release() // by now devices hold on to each other
	if err := s.build(ctx, v.Freeze()); err != nil {
		return disk.Attached{}, errors.Join(
			errs.New(errs.Internal, "the disk %s can't be attached", v.Path).Because(err), u.Rollback(ctx))
	}
	path, err := devmapper.Node(s.top)
	if err != nil {
		return disk.Attached{}, errors.Join(err, u.Rollback(ctx))
	}
	u.Disarm()
	return disk.Attached{Path: path, Format: "raw"}, nil
}

// Detach removes every device of the home, the topmost first.
func (d *Driver) Detach(ctx context.Context, home disk.Home) error {
	if err := checkID(home.ID); err != nil {
		return err
	}
	all, err := d.mapper.List()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // who can make no device has none
	}
	if err != nil {
		return err
	}
	found := devicesOf(home.ID, all)
	for _, name := range found {
		dev, err := d.mapper.Get(name)
		if errors.Is(err, devmapper.ErrNone) {
			continue
		}
		if err == nil {
			err = d.mapper.Remove(ctx, name)
		}
		if errors.Is(err, devmapper.ErrInUse) {
			return errs.New(errs.Busy, "the disk of %s is open", home.ID).Because(err).Try("fuser -v /dev/dm-%d tells by whom", dev.Minor)
		}
		if err == nil {
			err = devmapper.RemoveNode(dev)
		}
		if err != nil {
			return err
		}
	}
	if len(found) > 0 {
		loop.WaitGone(ctx, home.Dir)
	}
	return nil
}

// Remove takes away the devices and their files.
func (d *Driver) Remove(ctx context.Context, home disk.Home) error {
	if err := d.Detach(ctx, home); err != nil {
		return err
	}
	return errors.Join(disk.RemoveFile(home.Dir, fileName), disk.RemoveFile(home.Dir, zerosName))
}

// Usage tells what the file of changes takes.
func (d *Driver) Usage(v disk.Volume) (disk.Usage, error) {
	f, err := v.OpenFile(cowBytes(v.VirtualBytes))
	if err != nil {
		return disk.Usage{}, err
	}
	defer f.Close()
	var u disk.Usage
	if u.AllocatedBytes, err = disk.Allocated(f); err != nil {
		return u, err
	}
	err = entries(f, cowBytes(v.VirtualBytes), func(int64, int64) error {
		u.ChangedBytes += chunkBytes
		return nil
	})
	if err != nil {
		return u, v.Damaged(err)
	}
	return u, nil
}

// Extents yields the chunks that the file of changes holds: what was discarded it does not.
func (d *Driver) Extents(v disk.Volume, yield func(offset, bytes int64)) error {
	f, err := v.OpenFile(cowBytes(v.VirtualBytes))
	if err != nil {
		return err
	}
	defer f.Close()
	held := data{f: f}
	return entries(f, cowBytes(v.VirtualBytes), func(offset, place int64) error {
		there, err := held.at(place)
		if there {
			yield(offset, chunkBytes)
		}
		return err
	})
}

// Check asks the kernel whether it has given up the snapshot.
func (d *Driver) Check(home disk.Home) error {
	targets, err := d.mapper.Status(topName(home.ID))
	if errors.Is(err, devmapper.ErrNone) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, t := range targets {
		switch t.Params {
		case "Invalid", "Overflow":
			return errs.New(errs.Unavailable, "the host could not write to the disk of %s, whose snapshot is now %s", home.ID, strings.ToLower(t.Params)).
				Try("make room in its directory and start the VM again")
		}
	}
	return nil
}
