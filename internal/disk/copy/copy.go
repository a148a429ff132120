// Package copy owns the disk driver of last resort: a volume is a copy of its base's data,
// without the holes. It needs nothing of the host and costs time and space like the base.
package copy

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/errs"
)

// step is how much is copied before the context is looked at again, in bytes.
const step = 16 << 20

// Driver copies.
type Driver struct{ disk.RawFile }

// New returns the driver.
func New() Driver { return Driver{disk.RawFile{Driver: "copy", Fill: fill}} }

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
	return data(f, func(start, end int64) error {
		yield(start, end-start)
		return nil
	})
}

// fill copies the data of src, and leaves holes where it has holes.
func fill(ctx context.Context, dst, src *os.File) error {
	return data(src, func(start, end int64) error { return copyRange(ctx, dst, src, start, end) })
}

// data calls do for each range of f that is no hole.
func data(f *os.File, do func(start, end int64) error) error {
	for end := int64(0); ; {
		start, err := f.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // no data from here on
			return nil
		}
		if err == nil {
			end, err = f.Seek(start, unix.SEEK_HOLE)
		}
		if err == nil {
			err = do(start, end)
		}
		if err != nil {
			return err
		}
	}
}

func copyRange(ctx context.Context, dst, src *os.File, at, end int64) error {
	for _, f := range []*os.File{src, dst} {
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return err
		}
	}
	for at < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		// By copy_file_range where the two filesystems have it.
		n, err := io.CopyN(dst, src, min(step, end-at))
		if err != nil {
			return err
		}
		at += n
	}
	return nil
}
