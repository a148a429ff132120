package guestd

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// rootfs is the directory of a root filesystem. Names are relative to it, and symbolic
// links mean what they mean to a process that has it as its root.
type rootfs string

// maxLinks is the kernel's own limit of symbolic links in one name.
const maxLinks = 40

// resolve follows all symbolic links of name, the last too, and returns a path in which
// none is left, up to the first element that does not exist.
func (r rootfs) resolve(name string) (string, error) {
	todo := strings.Split(name, "/")
	at := "/" // as seen from the root
	links := 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, part)
		target, err := os.Readlink(filepath.Join(string(r), next))
		if err != nil {
			at = next // no link, or nothing there
			continue
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "resolve", Path: name, Err: syscall.ELOOP}
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return filepath.Join(string(r), at), nil
}

// maxFile bounds what is read of a configuration file.
const maxFile = 1 << 20

// read reads a regular file. Anything else in its place (a device, a pipe that would
// block, something huge) is an error.
func (r rootfs) read(name string) ([]byte, error) {
	path, err := r.resolve(name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return nil, fmt.Errorf("%s is not an ordinary file", path)
	}
	return io.ReadAll(f)
}

// inPlace is what of a file is written at once: a block of a filesystem.
const inPlace = 4096 // bytes

// write makes a file, through symbolic links and with its parent directories, have the
// given contents; nothing is touched if it has them. A small file is changed in its place,
// which takes a guest's kernel a fifth of the code that a new one in its place does, and all of
// that is translated first in a machine that has just come to be. What the loss of power in
// that moment leaves of it, the configure of the next boot puts right.
func (r rootfs) write(name string, data []byte, mode os.FileMode) error {
	old, err := r.read(name)
	if err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	path, err := r.resolve(name)
	if err != nil {
		return err
	}
	if old != nil && max(len(old), len(data)) <= inPlace {
		return overwrite(path, data, len(old))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temp := path + "." + rand.Text()
	if err := os.WriteFile(temp, data, mode); err != nil {
		return err
	}
	err = os.Rename(temp, path)
	if err != nil {
		os.Remove(temp)
	}
	if errors.Is(err, syscall.EBUSY) {
		return os.WriteFile(path, data, mode) // a mount point: it can't be replaced
	}
	return err
}

// overwrite has a file that had so many bytes be never empty: a program may read it at any moment.
func overwrite(path string, data []byte, had int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && len(data) < had {
		err = f.Truncate(int64(len(data)))
	}
	return errors.Join(err, f.Close())
}
