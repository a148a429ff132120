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

// write makes a file, through symbolic links and with its parent directories, have the
// given contents; nothing is touched if it has them.
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
