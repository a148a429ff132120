// Package qcow2 owns the disk driver for QEMU: an overlay file on a raw image or on a
// frozen overlay, whose header it writes itself. It knows of the format only what a fresh
// overlay is made of and how much an old one holds; reading and writing the disk is QEMU's.
package qcow2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"banger/internal/disk"
	"banger/internal/errs"
)

const (
	name     = "qcow2"
	fileName = "root.qcow2"
)

// Driver makes qcow2 overlays. It has no state.
type Driver struct{}

var _ disk.Driver = Driver{}

// Name is "qcow2".
func (Driver) Name() string { return name }

// Probe finds nothing amiss but a path that the format has no room for: an overlay can be
// made on every filesystem.
func (Driver) Probe(_ context.Context, base disk.Base, _ string) error {
	if len(base.Path) > maxBackingName {
		return longName(base.Path)
	}
	return nil
}

// Clone makes root.qcow2 in spec.Dir. It takes the same time for any base: three blocks
// are written, and the tables are otherwise holes.
//
// Nothing is synced, for that would be nearly all of the cost. Neither is it needed: the
// first flush by the guest that succeeds has synced this file, header and name included.
// If a power cut comes before that, no write was acknowledged to the guest as durable, and
// what is left, nothing or an overlay that Usage finds torn (errs.NotFound), may be made
// anew by another Clone.
func (Driver) Clone(ctx context.Context, base disk.Base, spec disk.Spec) (disk.Volume, error) {
	size, err := disk.VirtualBytes(base, spec)
	if err != nil {
		return disk.Volume{}, err
	}
	if !filepath.IsAbs(base.Path) {
		return disk.Volume{}, fmt.Errorf("the path of the base, %q, is not absolute", base.Path)
	}
	if err := check(&base); err != nil {
		return disk.Volume{}, err
	}
	pieces, fileBytes, err := encode(size, base.Path, formatOf(&base))
	if err != nil {
		return disk.Volume{}, errs.New(errs.Invalid, "a disk can't be made on %s", base.Path).Because(err)
	}
	path, err := disk.MakeFile(ctx, spec.Dir, fileName, func(f *os.File) error { return write(f, pieces, fileBytes) })
	if err != nil {
		return disk.Volume{}, err
	}
	return disk.Volume{Driver: name, Path: path, VirtualBytes: size, On: &base}, nil
}

func write(f *os.File, pieces []piece, fileBytes int64) error {
	if err := f.Truncate(fileBytes); err != nil {
		return err
	}
	for _, p := range pieces {
		if _, err := f.WriteAt(p.data, p.offset); err != nil {
			return err
		}
	}
	return nil
}

// formatOf is the format of a base's file: overlays lie on something, raw files don't.
func formatOf(b *disk.Base) string {
	if b.On != nil {
		return name
	}
	return "raw"
}

// check looks at a base, and with a frozen overlay at what its header says.
func check(b *disk.Base) error {
	if err := b.Check(); err != nil {
		return err
	}
	for ; b.On != nil; b = b.On {
		if b.Driver != name {
			return fmt.Errorf("%s is a disk of the driver %q, which QEMU can't read", b.Path, b.Driver)
		}
		if err := checkHeader(disk.Volume{Path: b.Path, VirtualBytes: b.Bytes, On: b.On}); err != nil {
			return err
		}
	}
	return nil
}

// checkHeader refuses an overlay whose header says other than what is known of it.
func checkHeader(v disk.Volume) error {
	h, err := ReadHeader(v.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errs.New(errs.NotFound, "the disk %s is not there", v.Path)
	case errors.Is(err, errTorn):
		return errs.New(errs.NotFound, "the disk %s was never finished", v.Path)
	case err != nil:
		return v.Damaged(err)
	case h.VirtualBytes != v.VirtualBytes:
		return v.Damaged(fmt.Errorf("its header says it has %d bytes and it should have %d", h.VirtualBytes, v.VirtualBytes))
	case h.Backing != v.On.Path || h.BackingFormat != formatOf(v.On):
		return v.Damaged(fmt.Errorf("its header says it lies on %s (%s), not on %s (%s)", h.Backing, h.BackingFormat, v.On.Path, formatOf(v.On)))
	case h.Corrupt:
		return v.Damaged(errors.New("QEMU has found its tables inconsistent"))
	}
	return nil
}

// Copy copies the overlay, whose header goes on naming the same base.
func (Driver) Copy(ctx context.Context, v disk.Volume, home disk.Home) (disk.Volume, error) {
	return v.CopyTo(ctx, home.Dir, fileName)
}

// Attach checks the overlay and all that it lies on, and says what each file is: QEMU is
// to believe that and no header.
func (Driver) Attach(_ context.Context, _ disk.Home, v disk.Volume) (disk.Attached, error) {
	base, err := v.Below()
	if err != nil {
		return disk.Attached{}, err
	}
	if err := check(base); err != nil {
		return disk.Attached{}, err
	}
	if err := checkHeader(v); err != nil {
		return disk.Attached{}, err
	}
	return disk.Attached{Path: v.Path, Format: name, On: below(base)}, nil
}

func below(b *disk.Base) *disk.Attached {
	if b == nil {
		return nil
	}
	return &disk.Attached{Path: b.Path, Format: formatOf(b), On: below(b.On)}
}

// Detach has nothing to do: QEMU opens files.
func (Driver) Detach(context.Context, disk.Home) error { return nil }

// Check has nothing to tell: a file that can't be written to now can be later.
func (Driver) Check(disk.Home) error { return nil }

// Remove takes away root.qcow2 and what an interrupted Clone has left.
func (Driver) Remove(_ context.Context, home disk.Home) error {
	return disk.RemoveFile(home.Dir, fileName)
}

// Usage tells what the overlay takes on the host's disk. errs.NotFound: it is not there,
// or a power cut has kept it from ever being finished, so that it holds nothing.
func (Driver) Usage(v disk.Volume) (disk.Usage, error) {
	f, err := v.OpenFile(-1)
	if err != nil {
		return disk.Usage{}, err
	}
	defer f.Close()
	var u disk.Usage
	if u.AllocatedBytes, err = disk.Allocated(f); err != nil {
		return u, err
	}
	err = held(f, func(_, bytes int64) { u.ChangedBytes += bytes })
	if errors.Is(err, errTorn) {
		return u, errs.New(errs.NotFound, "the disk %s was never finished", v.Path)
	}
	if err != nil {
		return u, v.Damaged(err)
	}
	return u, nil
}

// Extents yields what the overlay holds.
func (Driver) Extents(v disk.Volume, yield func(offset, bytes int64)) error {
	f, err := v.OpenFile(-1)
	if err != nil {
		return err
	}
	defer f.Close()
	return held(f, yield)
}
