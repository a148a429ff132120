package disk

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyStep is how much is copied before the context is looked at again, in bytes.
const copyStep = 16 << 20

// CopySparse copies the data of src to the empty file dst, and leaves holes where it has
// holes. The size of dst is left to the caller.
func CopySparse(ctx context.Context, dst, src *os.File) error {
	return Data(src, func(start, end int64) error { return copyRange(ctx, dst, src, start, end) })
}

// Data calls do for each range of f that is no hole.
func Data(f *os.File, do func(start, end int64) error) error {
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
		n, err := io.CopyN(dst, src, min(copyStep, end-at))
		if err != nil {
			return err
		}
		at += n
	}
	return nil
}
