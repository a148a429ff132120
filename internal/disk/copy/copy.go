// Package copy owns the disk driver of last resort: a volume is a copy of its base's data,
// without the holes. It needs nothing of the host and costs time and space like the base.
package copy

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/errs"
)

// Driver copies.
type Driver struct{ disk.RawFile }

// New returns the driver.
func New() Driver { return Driver{disk.RawFile{Driver: "copy", Fill: disk.CopySparse}} }

var _ disk.Driver = Driver{}

// Probe tells where there is no room for a copy: begun all the same, it would fill the host's
// filesystem under everybody else before it failed.
func (Driver) Probe(_ context.Context, base disk.Base, dir string) error {
	if base.Path == "" {
		return nil
	}
	f, err := base.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	needed, err := disk.Allocated(f)
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if free := int64(st.Bavail) * st.Bsize; free < needed {
		return errs.New(errs.Unavailable, "a copy of %s takes %d MiB, and %d are free in %s", base.Path, needed>>20, free>>20, dir)
	}
	return nil
}

// Usage tells what the copy takes; what of it the guest has changed nobody knows.
func (Driver) Usage(v disk.Volume) (disk.Usage, error) {
	f, err := v.OpenFile(-1)
	if err != nil {
		return disk.Usage{}, err
	}
	defer f.Close()
	n, err := disk.Allocated(f)
	return disk.Usage{ChangedBytes: -1, AllocatedBytes: n}, err
}

// Extents yields all data: what of it the guest has changed nobody knows.
func (Driver) Extents(v disk.Volume, yield func(offset, bytes int64)) error {
	f, err := v.OpenFile(-1)
	if err != nil {
		return err
	}
	defer f.Close()
	return disk.Data(f, func(start, end int64) error {
		yield(start, end-start)
		return nil
	})
}
