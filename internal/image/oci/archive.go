package oci

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// archived is the files of an uncompressed tar archive.
type archived struct {
	file  *os.File
	index map[string]part
}

// part is a file in an archive, or a symbolic link to one.
type part struct {
	at, size int64
	link     string
}

const (
	// maxParts is more files than an archive of images has. One with more is a root
	// filesystem.
	maxParts    = 20_000
	maxPartName = 1024
)

// openArchive looks through an archive. It returns false if that has too many files for one
// of images.
func openArchive(f *os.File) (*archived, bool, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, false, err
	}
	a := &archived{file: f, index: map[string]part{}}
	for headers := tar.NewReader(f); ; {
		hdr, err := headers.Next()
		if errors.Is(err, io.EOF) {
			return a, true, nil
		}
		if errors.Is(err, unix.EINVAL) { // a size that no file has
			return nil, false, nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return nil, false, tarError(err)
		}
		if len(a.index) >= maxParts || len(hdr.Name) > maxPartName || len(hdr.Linkname) > maxPartName {
			return nil, false, nil
		}
		switch name := path.Clean(hdr.Name); hdr.Typeflag {
		case tar.TypeReg:
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, false, err
			}
			a.index[name] = part{at: at, size: hdr.Size}
		case tar.TypeLink:
			a.index[name] = part{link: path.Clean(hdr.Linkname)}
		case tar.TypeSymlink: // docker save of old: layers that are equal
			a.index[name] = part{link: path.Join(path.Dir(name), hdr.Linkname)}
		}
	}
}

func (a *archived) has(name string) bool {
	_, ok := a.index[name]
	return ok
}

func (a *archived) Open(name string) (io.ReadCloser, int64, error) {
	name = path.Clean(name)
	for range 8 {
		p, ok := a.index[name]
		if !ok {
			return nil, 0, fs.ErrNotExist
		}
		if p.link == "" {
			return io.NopCloser(io.NewSectionReader(a.file, p.at, p.size)), p.size, nil
		}
		name = p.link
	}
	return nil, 0, refuse("its links lead around in a circle")
}

// unpacked is the files of a directory, none of which may lie outside.
type unpacked struct{ root *os.Root }

func (u unpacked) Open(name string) (io.ReadCloser, int64, error) {
	// A pipe in the place of a file would be waited for.
	f, err := u.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = refuse("%s is not an ordinary file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}
