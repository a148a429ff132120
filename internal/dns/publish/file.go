package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

const (
	// maxFile bounds, in bytes, a file that is edited.
	maxFile = 1 << 20

	// lockPause is the time between two tries to lock a file that another edits.
	lockPause = 20 * time.Millisecond

	// editLimit bounds one edit, which begins anew when another changes the file meanwhile.
	editLimit = 5 * time.Second
)

// Flags of a file, of linux/fs.h: FS_IMMUTABLE_FL and FS_APPEND_FL.
const (
	immutable  = 0x10
	appendOnly = 0x20
)

var errChanged = errors.New("others change it all the time")

// replace edits a file that belongs to the host. It is replaced in one step and keeps its
// mode, owner and attributes; where it is a mount point, as in containers, and can't be
// replaced, it is written in place from the first byte that differs.
func replace(ctx context.Context, door door, file string, edit func(string) string) error {
	ctx, cancel := context.WithTimeout(ctx, editLimit)
	defer cancel()
	err := replaceOnce(ctx, door, file, edit)
	for errors.Is(err, errChanged) && ctx.Err() == nil {
		err = replaceOnce(ctx, door, file, edit)
	}
	if err == nil {
		return nil
	}
	if errs.KindOf(err) != errs.Internal {
		return err
	}
	return errs.New(errs.Unavailable, "edit %s", file).Because(err).Try(`set dns_publish = "none" in the config file if banger is to leave it alone`)
}

func replaceOnce(ctx context.Context, door door, file string, edit func(string) string) error {
	f, text, err := read(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if edit(text) == text && !exists(draft(file)) {
		return nil
	}
	if err := lock(ctx, f); err != nil { // one that closing gives back
		return err
	}
	locked, text, err := read(file) // as it is now that it is locked
	if err != nil {
		return err
	}
	defer locked.Close()
	if !same(f, locked) {
		return errChanged // it was replaced while we waited, so the lock is on another file
	}
	if err := mayChange(locked); err != nil {
		return err
	}
	wanted := edit(text)
	if len(wanted) > maxFile {
		return tooLong(file)
	}
	if err := os.Remove(draft(file)); err != nil && !errors.Is(err, fs.ErrNotExist) { // left by one that was killed
		return err
	}
	if wanted == text {
		return nil
	}
	err = swap(door, file, locked, text, wanted)
	if errors.Is(err, unix.EBUSY) {
		return inPlace(door, file, text, edit)
	}
	return err
}

// read opens a file and reads it, if it is one that can be edited.
func read(file string) (*os.File, string, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ELOOP):
		target, _ := os.Readlink(file) // for the message only
		return nil, "", errs.New(errs.Conflict, "%s is a symbolic link to %s", file, target).
			Try(`name the file itself with hosts_file in the config file, or set dns_publish = "none"`)
	case err != nil:
		return nil, "", err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errs.New(errs.Conflict, "%s is no regular file", file).Try("set hosts_file in the config file")
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(f, maxFile+1))
	}
	if err == nil && len(text) > maxFile {
		err = tooLong(file)
	}
	if err != nil {
		return nil, "", errors.Join(err, f.Close())
	}
	return f, string(text), nil
}

func tooLong(file string) error {
	return errs.New(errs.Conflict, "%s is longer than 1 MiB", file).Try(`shorten it, or set dns_publish = "none" in the config file`)
}

// mayChange tells whether a file can be changed at all: chattr(1) can forbid it even to root.
func mayChange(f *os.File) error {
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&(immutable|appendOnly) != 0 {
		return errs.New(errs.Conflict, "%s is marked immutable or append-only", f.Name()).
			Try("chattr -i -a %s, or set dns_publish = \"none\" in the config file", f.Name())
	}
	return nil // many filesystems know no such flags
}

func lock(ctx context.Context, f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return fmt.Errorf("another holds its lock: %w", ctx.Err())
		}
	}
}

func same(a, b *os.File) bool {
	x, errX := a.Stat()
	y, errY := b.Stat()
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// draft is the name of what is to take the file's place. Whoever has the lock has it, too.
func draft(file string) string {
	return filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".banger")
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// swap puts a new file in the place of the old one, which still has to be as it was read.
func swap(door door, file string, old *os.File, text, wanted string) (err error) {
	temp := draft(file)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(temp))
		}
	}()
	err = door.step("write the new hosts file", func() error {
		_, err := f.WriteString(wanted)
		return err
	})
	if err == nil {
		err = likeness(old, f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	now, current, err := read(file)
	if err != nil {
		return err
	}
	unchanged := current == text && same(now, old)
	now.Close()
	if !unchanged {
		return errChanged
	}
	if err := door.step("put the new hosts file in its place", func() error { return unix.Rename(temp, file) }); err != nil {
		return err
	}
	return syncDir(filepath.Dir(file))
}

// likeness gives a file the owner, mode and extended attributes (access lists, labels) of
// another.
func likeness(from, to *os.File) error {
	info, err := from.Stat()
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	if err := to.Chown(int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(int(to.Fd()), st.Mode&0o7777); err != nil {
		return err
	}
	names := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Flistxattr(int(from.Fd()), names)
	if err != nil {
		return nil // a filesystem without any
	}
	for _, name := range splitNul(names[:n]) {
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(int(from.Fd()), name, value)
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), name, value[:n], 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("copy the attribute %s: %w", name, err)
		}
	}
	return nil
}

func splitNul(b []byte) (all []string) {
	for begin, i := 0, 0; i < len(b); i++ {
		if b[i] == 0 {
			all = append(all, string(b[begin:i]))
			begin = i + 1
		}
	}
	return all
}

// inPlace writes what differs. A daemon killed in the middle leaves others' lines whole, and of ours
// what the next edit knows: where the file becomes shorter and all from there on is ours, as it
// is as a rule, the old end goes first. Else empty lines stay at the end after a crash.
func inPlace(door door, file, text string, edit func(string) string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	wanted, from := edit(text), 0
	for from < len(text) && from < len(wanted) && text[from] == wanted[from] {
		from++
	}
	from = strings.LastIndexByte(text[:from], '\n') + 1
	cut := func(size int) error {
		return door.step("shorten the hosts file", func() error { return f.Truncate(int64(size)) })
	}
	rest, shorter := wanted[from:], len(wanted) < len(text)
	if shorter && edit(text[:from]) == wanted {
		err, shorter = cut(from), false
	} else if shorter {
		rest += strings.Repeat("\n", len(text)-len(wanted))
	}
	if err == nil {
		err = door.step("write to the hosts file", func() error {
			_, err := f.WriteAt([]byte(rest), int64(from))
			return err
		})
	}
	if err == nil && shorter {
		err = cut(len(wanted))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
