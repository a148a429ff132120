package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
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

// CopyTo makes the file dir/name that has all that v's file has: by sharing its blocks, where
// the filesystem can do that. It is what drivers whose volume is one file copy it by.
func (v Volume) CopyTo(ctx context.Context, dir, name string) (Volume, error) {
	src, err := v.OpenFile(-1)
	if err != nil {
		return Volume{}, err
	}
	defer src.Close()
	path, err := MakeFile(ctx, dir, name, func(dst *os.File) error {
		if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
			return nil
		}
		info, err := src.Stat()
		if err == nil {
			err = dst.Truncate(info.Size())
		}
		if err != nil {
			return err
		}
		return CopySparse(ctx, dst, src)
	})
	v.Path = path
	return v, err
}

// Sum sums where a file has data and what it is, with what CPUs have an instruction for: 100
// MB take 20 ms. It guards against accidents, not against who can write to the file.
func Sum(f *os.File) (uint32, error) {
	table := crc32.MakeTable(crc32.Castagnoli)
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	sum := crc32.Update(0, table, binary.BigEndian.AppendUint64(nil, uint64(info.Size())))
	buf, zeros := make([]byte, 1<<20), make([]byte, 1<<12)
	err = Data(f, func(start, end int64) error {
		for at := start; at < end; {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), end-at)], at)
			if n == 0 {
				return err
			}
			// A filesystem may make data of some holes, so zeros don't count.
			for i := 0; i < n; i += len(zeros) {
				if page := buf[i:min(n, i+len(zeros))]; string(page) != string(zeros[:len(page)]) {
					sum = crc32.Update(sum, table, binary.BigEndian.AppendUint64(nil, uint64(at)+uint64(i)))
					sum = crc32.Update(sum, table, page)
				}
			}
			at += int64(n)
		}
		return nil
	})
	return sum, err
}
