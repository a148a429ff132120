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
)

// step is how much is copied before the context is looked at again, in bytes.
const step = 16 << 20

// Driver copies.
type Driver struct{ disk.RawFile }

// New returns the driver.
func New() Driver { return Driver{disk.RawFile{Driver: "copy", Fill: fill}} }

var _ disk.Driver = Driver{}

// Probe finds nothing amiss: a copy can always be tried.
func (Driver) Probe(context.Context, disk.Base, string) error { return nil }

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

// fill copies the data of src, and leaves holes where it has holes.
func fill(ctx context.Context, dst, src *os.File) error {
	info, err := src.Stat()
	if err != nil {
		return err
	}
	for end := int64(0); ; {
		start, err := src.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // no data from here on
			return nil
		}
		if err == nil {
			end, err = src.Seek(start, unix.SEEK_HOLE)
		}
		if err != nil {
			return err
		}
		if err := copyRange(ctx, dst, src, start, min(end, info.Size())); err != nil {
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
