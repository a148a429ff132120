package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// maxDepth bounds how many volumes may lie on each other: an image, the overlay of a
// template and that of a VM are three.
const maxDepth = 8

// Base is what volumes are made from and nobody writes to: an image, which is a raw file,
// or a frozen volume.
type Base struct {
	Path   string `json:"path"`             // absolute
	Bytes  int64  `json:"bytes"`            // virtual size, a multiple of SectorBytes
	SHA256 string `json:"sha256,omitempty"` // of an image's file, in hexadecimal
	Driver string `json:"driver,omitempty"` // of a frozen volume; empty: an image
	On     *Base  `json:"on,omitempty"`     // what a frozen volume reads where it has no changes
}

// Check refuses a base that can't be read as it was when volumes were made of it: it is
// gone, is no regular file, or has another size. What is below is checked
// too. errs.Unavailable, with the reason.
func (b Base) Check() error {
	for depth, x := 0, &b; x != nil; depth, x = depth+1, x.On {
		f, err := x.open()
		if err != nil {
			return err
		}
		f.Close() // it was only read
		if depth == maxDepth {
			return errs.New(errs.Invalid, "more than %d disks lie on each other below %s", maxDepth, b.Path)
		}
	}
	return nil
}

// Thaw gives the volume that was frozen. Only a copy of it may be written to.
func (b Base) Thaw() Volume {
	return Volume{Driver: b.Driver, Path: b.Path, VirtualBytes: b.Bytes, On: b.On}
}

// ReadsFrom tells whether the base, or one that lies below it, has its file in dir.
func (b Base) ReadsFrom(dir string) bool {
	for x := &b; x != nil; x = x.On {
		if filepath.Dir(x.Path) == dir {
			return true
		}
	}
	return false
}

// Open opens the base's file for reading once it has passed the same checks as in Check.
func (b Base) Open() (*os.File, error) {
	if err := b.Check(); err != nil {
		return nil, err
	}
	return b.open()
}

func (b Base) open() (*os.File, error) {
	unusable := func(format string, args ...any) *errs.Error {
		return errs.New(errs.Unavailable, "the image file "+format, args...)
	}
	// Without O_NONBLOCK a FIFO in its place would hold the open for ever.
	f, err := os.OpenFile(b.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, unusable("%s is gone", b.Path).Try("put it back; without it the disks made from it can't be read")
	case err != nil:
		return nil, unusable("%s can't be read", b.Path).Because(err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		err = unusable("%s can't be read", b.Path).Because(err)
	case !info.Mode().IsRegular():
		err = unusable("%s is no regular file", b.Path)
	case b.On == nil && info.Size() != b.Bytes: // of an overlay only its driver knows
		err = unusable("%s has %d bytes, and had %d when it was made", b.Path, info.Size(), b.Bytes).
			Try("put the original back; disks made from it would read wrongly")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
