// Package disk owns what a VM's root disk is: a volume made from a read-only base in
// O(1) time and O(changes) space, by one of several drivers that all pass disktest. It
// knows nothing of VMs, images or the programs that read the volumes.
package disk

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"banger/internal/errs"
	"banger/internal/host"
)

// SectorBytes is the unit of a virtual size: a disk has whole sectors.
const SectorBytes = 512

// MaxBytes is the largest virtual size accepted, in bytes: 64 TiB, far above any sandbox
// and far below where the on-disk tables or a guest's arithmetic get into trouble.
const MaxBytes = 64 << 40

// Home is where a volume lives. The files of the volume are in Dir, and the names of its
// kernel objects derive from ID, so that whoever takes them away needs nothing else.
type Home struct {
	ID  string // of the VM, unique on the host
	Dir string // the VM's own directory, absolute
}

// Spec says what volume is wanted.
type Spec struct {
	Home        // its directory exists
	Bytes int64 // virtual size, rounded up to whole sectors; 0: the base's
}

// Volume is a root disk at rest: what is remembered of it, and survives the host.
type Volume struct {
	Driver       string `json:"driver"`
	Path         string `json:"path"` // of the file that holds its changes
	VirtualBytes int64  `json:"virtual_bytes"`
	On           *Base  `json:"on,omitempty"` // what it reads where it has no changes; nil: it is whole
}

// Attached is a volume as a VMM opens it: a file or a block device, with the files that it
// reads through to.
type Attached struct {
	Path   string
	Format string    // raw or qcow2, never to be probed
	On     *Attached // of a qcow2: what lies below, for reading only
}

// Usage is what a volume takes.
type Usage struct {
	// ChangedBytes is how much of the disk the volume holds itself rather than its
	// base, in bytes; -1 where the driver can't tell.
	ChangedBytes int64

	// AllocatedBytes is what the host's filesystem keeps for this volume alone.
	AllocatedBytes int64
}

// Driver makes, attaches and removes volumes of one kind.
type Driver interface {
	// Name is the driver's name as users see it.
	Name() string

	// Probe tells why the driver can't make a volume of this base in dir; nil if it can.
	// It tries, and leaves nothing.
	Probe(ctx context.Context, base Base, dir string) error

	// Clone makes a volume in spec.Dir that reads as base and keeps its own changes. It
	// makes files only, and replaces a volume left there by an earlier attempt. On error
	// nothing is left. errs.Invalid: the size is below the base's or absurd;
	// errs.Unavailable: there is no room, or the base is not what it was.
	Clone(ctx context.Context, base Base, spec Spec) (Volume, error)

	// Copy makes a volume in home that is what v is now and lies on what v lies on: of v's
	// changes, not of its base. Nobody writes to v meanwhile. On error nothing is left.
	Copy(ctx context.Context, v Volume, home Home) (Volume, error)

	// Attach makes what the VMM opens: afresh whatever the last life of the VM, or of
	// the host, has left. errs.Busy if the volume is open; errs.Internal if it is damaged.
	Attach(ctx context.Context, home Home, v Volume) (Attached, error)

	// Detach takes away every kernel object that Attach may have made for this home,
	// finished or not. Finding nothing is success. errs.Busy if the volume is open.
	Detach(ctx context.Context, home Home) error

	// Check tells why the volume attached for this home has stopped to work for good; nil
	// while it works, and where none is attached. errs.Unavailable
	Check(home Home) error

	// Remove detaches, then takes away every file that Clone may have made, finished or
	// not. Finding nothing is success, also when the directory itself is gone.
	Remove(ctx context.Context, home Home) error

	// Usage tells what the volume takes, attached or not. errs.NotFound: it is not there.
	Usage(v Volume) (Usage, error)

	// Extents yields, in any order, the ranges of the disk that the volume holds itself
	// rather than its base, in bytes; a driver that can't tell yields all with data.
	Extents(v Volume, yield func(offset, bytes int64)) error
}

// Sync returns once the volume is sure to be there after a power cut. A fresh one has no
// data but its base's, and the guest's own flushes keep what is written later, so this is
// needed once.
func (v Volume) Sync() error {
	for _, path := range []string{v.Path, filepath.Dir(v.Path)} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(host.Fault("sync "+path), f.Sync(), f.Close()); err != nil {
			return errs.New(errs.Unavailable, "the host can't keep the disk %s", path).Because(err).
				Try("look at the filesystem that it is on, by df -h and dmesg, and try again")
		}
	}
	return nil
}

// Below is what v reads where it has no changes. errs.Internal: nothing is known of that.
func (v Volume) Below() (*Base, error) {
	if v.On == nil {
		return nil, v.Damaged(errors.New("nothing is known of what it lies on"))
	}
	return v.On, nil
}

// Freeze gives the base that v is from now on. Nobody may write to v any more.
func (v Volume) Freeze() Base {
	return Base{Path: v.Path, Bytes: v.VirtualBytes, Driver: v.Driver, On: v.On}
}

// VirtualBytes is the size that a clone of base made for spec has, in bytes: what the
// drivers share of checking a request. errs.Invalid if the sizes make no sense.
func VirtualBytes(base Base, spec Spec) (int64, error) {
	switch {
	case base.Bytes <= 0 || base.Bytes%SectorBytes != 0 || base.Bytes > MaxBytes:
		return 0, errs.New(errs.Invalid, "the image %s has %d bytes, which is no size of a disk", base.Path, base.Bytes)
	case spec.Bytes == 0:
		return base.Bytes, nil
	case spec.Bytes < 0:
		return 0, errs.New(errs.Invalid, "a disk can't have %d bytes", spec.Bytes)
	case spec.Bytes > MaxBytes:
		return 0, errs.New(errs.Invalid, "a disk of %d bytes is larger than the most possible, %d (64 TiB)", spec.Bytes, int64(MaxBytes))
	case spec.Bytes < base.Bytes:
		return 0, errs.New(errs.Invalid, "a disk of %d bytes is smaller than the image, which has %d", spec.Bytes, base.Bytes).
			Try("ask for at least %d MiB, or leave the size out", (base.Bytes+1<<20-1)>>20)
	}
	return (spec.Bytes + SectorBytes - 1) / SectorBytes * SectorBytes, nil
}
