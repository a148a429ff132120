package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
)

// Unfinished ends the name of a volume's file until it is whole.
const Unfinished = ".new"

// MakeFile makes the file dir/name, which appears once fill has written it, in place of
// one that was there. On error nothing of it is left. It is not synced: see [Volume.Sync].
func MakeFile(ctx context.Context, dir, name string, fill func(*os.File) error) (path string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	path = filepath.Join(dir, name)
	// What an attempt left is thrown away, not reused: its owner and mode are unknown. And a
	// rename onto a file would have ext4 write out the new one first.
	if err := RemoveFile(dir, name); err != nil {
		return "", err
	}
	err = writeNew(path+Unfinished, fill)
	if err == nil {
		err = host.Fault("rename a new disk")
	}
	if err == nil {
		err = os.Rename(path+Unfinished, path)
	}
	if err != nil {
		return "", errors.Join(makeError(dir, err), RemoveFile(dir, name))
	}
	return path, nil
}

func writeNew(path string, fill func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(fill(f), f.Close())
}

func makeError(dir string, err error) error {
	var told *errs.Error
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || strings.Contains(err.Error(), "No space left on device"): // qemu-img's
		return errs.New(errs.Unavailable, "there is no room for a disk in %s", dir).Because(err).
			Try("free some space there: banger rm removes VMs, banger image rm images")
	case errors.As(err, &told), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return errs.New(errs.Internal, "the disk in %s can't be made", dir).Because(err)
}

// RemoveFile takes away what MakeFile has made, or has begun to make, of dir/name.
func RemoveFile(dir, name string) error {
	var failed []error
	for _, name := range []string{name + Unfinished, name} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// OpenFile opens the file of a volume for reading. errs.NotFound: it is not there.
// errs.Internal: it is no regular file, or its size is not the one given; -1: any.
func (v Volume) OpenFile(bytes int64) (*os.File, error) {
	f, err := os.OpenFile(v.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "the disk %s is not there", v.Path)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		switch {
		case !info.Mode().IsRegular():
			err = v.Damaged(errors.New("it is no regular file"))
		case bytes >= 0 && info.Size() != bytes:
			err = v.Damaged(fmt.Errorf("its file has %d bytes and should have %d", info.Size(), bytes))
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Damaged says that a volume is not as its driver and its VMs have left it.
func (v Volume) Damaged(why error) error {
	return errs.New(errs.Internal, "the disk %s is damaged", v.Path).Because(why).
		Try("restore that file from a copy, or remove the VM and make it anew")
}

// Allocated is what the filesystem keeps for a file, in bytes.
func Allocated(f *os.File) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return st.Blocks * 512, nil // st_blocks counts 512 bytes on every filesystem
}
