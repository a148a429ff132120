// Package disk owns what a VM's root disk is: a volume made from a read-only base in
// O(1) time and O(changes) space, by one of several drivers that all pass disktest. It
// knows nothing of VMs, images or the programs that read the volumes.
package disk

import (
	"context"
	"errors"
	"fmt"
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

// Base is a read-only image file, raw. No driver ever writes to it.
type Base struct {
	Path  string // absolute
	Bytes int64  // its size, a multiple of SectorBytes
}

// Spec says what volume is wanted.
type Spec struct {
	Dir   string // the VM's own directory, which exists; every file of the volume is in it
	Bytes int64  // virtual size, rounded up to whole sectors; 0: the base's
}

// Volume is a disk ready for a VMM.
type Volume struct {
	Driver       string `json:"driver"`
	Path         string `json:"path"`
	Format       string `json:"format"` // raw or qcow2, never to be probed
	VirtualBytes int64  `json:"virtual_bytes"`
}

// Sync returns once the volume is sure to be there after a power cut. A fresh one is an
// empty overlay whose data the guest's own flushes keep, so this is needed once.
func (v Volume) Sync() error {
	for _, path := range []string{v.Path, filepath.Dir(v.Path)} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(host.Fault("sync "+path), f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("sync %s: %w", path, err)
		}
	}
	return nil
}

// Driver makes and removes volumes of one kind.
type Driver interface {
	// Name is the driver's name as users see it.
	Name() string

	// Clone makes a volume in spec.Dir that reads as base and keeps its own changes.
	// It replaces a volume left there by an earlier attempt. On error nothing is left.
	// errs.Invalid: the size is below the base's or absurd.
	Clone(ctx context.Context, base Base, spec Spec) (Volume, error)

	// Remove takes away everything that Clone may have made in dir, finished or not.
	// Finding nothing is success, also when dir itself is gone.
	Remove(ctx context.Context, dir string) error

	// Usage tells the bytes allocated on the host for the volume's changes.
	Usage(v Volume) (allocated int64, err error)
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
