// Package reflink owns the disk driver for filesystems whose files can share blocks
// (btrfs, xfs, bcachefs): a volume is a raw file that shares every block with its base
// until it is written to.
package reflink

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/errs"
)

// Driver makes files that share blocks.
type Driver struct{ disk.RawFile }

// New returns the driver.
func New() Driver { return Driver{disk.RawFile{Driver: "reflink", Fill: clone}} }

var _ disk.Driver = Driver{}

// clone makes dst share all blocks of base: in one step, whatever their number of bytes.
func clone(_ context.Context, dst, base *os.File) error {
	err := unix.IoctlFileClone(int(dst.Fd()), int(base.Fd()))
	switch {
	case errors.Is(err, unix.EXDEV):
		return errs.New(errs.Unavailable, "%s and %s are on different filesystems, so they can't share blocks", base.Name(), dst.Name())
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return errs.New(errs.Unavailable, "the filesystem of %s can't share blocks between files", dst.Name())
	case err != nil:
		return fmt.Errorf("share the blocks of %s: %w", base.Name(), err)
	}
	return nil
}

// Probe shares the base's blocks with a file in dir that is gone again at once. A base
// without a path stands for any file in dir.
func (Driver) Probe(ctx context.Context, base disk.Base, dir string) (err error) {
	dst, err := nameless(dir)
	if err != nil {
		return err
	}
	defer dst.Close()
	src := dst
	if base.Path != "" {
		src, err = base.Open()
	} else if src, err = nameless(dir); err == nil {
		_, err = src.Write(make([]byte, 4096))
	}
	if err != nil {
		return err
	}
	defer src.Close()
	return clone(ctx, dst, src)
}

func nameless(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".probe-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// Usage tells how many bytes the file has for itself. Writes go to blocks of the file's
// own, so they are also what has changed.
func (Driver) Usage(v disk.Volume) (disk.Usage, error) {
	f, err := v.OpenFile(-1)
	if err != nil {
		return disk.Usage{}, err
	}
	defer f.Close()
	n := int64(0)
	err = exclusive(f, func(_, bytes int64) { n += bytes })
	return disk.Usage{ChangedBytes: n, AllocatedBytes: n}, err
}

// Extents yields the blocks that the file has for itself.
func (Driver) Extents(v disk.Volume, yield func(offset, bytes int64)) error {
	f, err := v.OpenFile(-1)
	if err != nil {
		return err
	}
	defer f.Close()
	return exclusive(f, yield)
}
