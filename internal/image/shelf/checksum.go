package shelf

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"os"

	"golang.org/x/sys/unix"
)

// Checksum returns the SHA-256 of the file at path, in hexadecimal as sha256sum gives it,
// and its size. Holes are hashed as the zeros they read as, but not read: that would fill
// the page cache with nothing. progress may be nil.
func Checksum(ctx context.Context, path string, progress func(done, total int64)) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	h, size := sha256.New(), info.Size()
	buf, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return "", 0, err
		}
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // a hole up to the end
			data = size
		case err != nil: // a filesystem that has no holes
			data = at
		}
		if data > at {
			at += writeSome(h, zeros, data-at)
		} else {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
			if n == 0 {
				return "", 0, err
			}
			at += writeSome(h, buf, int64(n))
		}
		if progress != nil {
			progress(at, size)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}

// writeSome hashes at most n bytes of b and returns how many.
func writeSome(h hash.Hash, b []byte, n int64) int64 {
	n = min(n, int64(len(b)))
	h.Write(b[:n])
	return n
}
