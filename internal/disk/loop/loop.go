// Package loop owns loop devices: files as block devices. Every device it makes goes by
// itself when its last user does (autoclear), so there is nothing to detach, to remember or
// to find after a crash. It knows nothing of what uses them.
package loop

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

const controlPath = "/dev/loop-control"

// Loops makes and finds loop devices. The zero value is ready.
type Loops struct {
	sharing sync.Mutex // from looking for a device until there is one
}

// Device is an open loop device. It exists at least until Close, and after that as long as
// the kernel or another process has it open.
type Device struct {
	f            *os.File
	Major, Minor uint32
	DirectIO     bool // the file's pages are not cached a second time
}

// Path is the device's node.
func (d *Device) Path() string { return d.f.Name() }

// Close lets go of the device.
func (d *Device) Close() error { return d.f.Close() }

// Caching says where what is read by a device stays in memory.
type Caching bool

const (
	Direct Caching = false // what is read is kept for the device, while that is there
	Cached Caching = true  // and for its file, which outlives the device
)

// OpenShared returns a read-only device of the file at path: the one that there is, or a new one.
func (l *Loops) OpenShared(ctx context.Context, path string, c Caching) (*Device, error) {
	l.sharing.Lock()
	defer l.sharing.Unlock()
	file, err := openBacking(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	found, err := find(&st)
	if err != nil || found != nil {
		return found, err
	}
	flags := uint32(unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_DIRECT_IO)
	if c == Cached {
		flags &^= unix.LO_FLAGS_DIRECT_IO
	}
	return attach(ctx, file, flags)
}

// OpenNew returns a device of the file at path that nobody else has.
func (l *Loops) OpenNew(ctx context.Context, path string, readOnly bool) (*Device, error) {
	mode, flags := os.O_RDWR, uint32(unix.LO_FLAGS_DIRECT_IO)
	if readOnly {
		mode, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	file, err := openBacking(path, mode)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return attach(ctx, file, flags)
}

// openBacking opens a regular file.
func openBacking(path string, mode int) (*os.File, error) {
	f, err := os.OpenFile(path, mode|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errs.New(errs.Invalid, "%s is no regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

const (
	// attempts bounds how often a device that was free is found taken by someone quicker.
	attempts = 64

	// busyDelay is between attempts where the kernel itself is busy with the device.
	busyDelay = 2 * time.Millisecond
)

// attach makes a device of an open file.
func attach(ctx context.Context, file *os.File, flags uint32) (*Device, error) {
	control, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "this host gives no loop devices").Because(err).
			Try("it takes root and the kernel's module loop")
	}
	defer control.Close()
	for range attempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, errs.New(errs.Unavailable, "there is no free loop device").Because(err)
		}
		d, err := configure(n, file, flags)
		switch {
		case err == nil:
			return d, nil
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENXIO), errors.Is(err, unix.EAGAIN), errors.Is(err, fs.ErrNotExist):
			// Someone else has taken it, or is just taking it away.
		default:
			return nil, fmt.Errorf("attach %s to loop%d: %w", file.Name(), n, err)
		}
		select {
		case <-time.After(busyDelay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, errs.New(errs.Busy, "others took every loop device that was free for %s", file.Name()).Try("try again")
}

// configure binds a free device to a file in one step (Linux 5.8), with direct I/O, if
// that is asked for, where the filesystem has it: the kernel goes without where it has not.
func configure(n int, file *os.File, flags uint32) (*Device, error) {
	dev, err := openNode(n, flags)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(file.Fd())}
	config.Info.Flags = flags | unix.LO_FLAGS_AUTOCLEAR
	copy(config.Info.File_name[:len(config.Info.File_name)-1], filepath.Base(file.Name()))
	err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
	if errors.Is(err, unix.EINVAL) { // some kernels refuse direct I/O instead
		config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
	}
	if err != nil {
		dev.Close()
		return nil, err
	}
	return open(dev)
}

func open(dev *os.File) (*Device, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(dev.Fd()), &st)
	var info *unix.LoopInfo64
	if err == nil {
		info, err = unix.IoctlLoopGetStatus64(int(dev.Fd()))
	}
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("look at %s: %w", dev.Name(), err)
	}
	return &Device{f: dev, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), DirectIO: info.Flags&unix.LO_FLAGS_DIRECT_IO != 0}, nil
}

const loopMajor = 7 // of the kernel's assigned numbers

// openNode opens the node of loop device n, which it makes where neither devtmpfs nor udev does.
func openNode(n int, flags uint32) (*os.File, error) {
	mode := os.O_RDWR
	if flags&unix.LO_FLAGS_READ_ONLY != 0 {
		mode = os.O_RDONLY
	}
	path := fmt.Sprintf("/dev/loop%d", n)
	f, err := os.OpenFile(path, mode|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(fmt.Sprintf("/sys/block/loop%d", n)); err != nil {
			return nil, err // the device itself has gone
		}
		err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n))))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, &os.PathError{Op: "mknod", Path: path, Err: err}
		}
		return os.OpenFile(path, mode|unix.O_CLOEXEC, 0)
	}
	return f, err
}

// goneLimit bounds WaitGone: udev looks at a device for some milliseconds.
const goneLimit = 2 * time.Second

// WaitGone waits until no loop device shows a file in dir: those that nobody uses any more go
// by themselves, but not in the same moment. One that stays is another's, and is left.
func WaitGone(ctx context.Context, dir string) {
	ctx, cancel := context.WithTimeout(ctx, goneLimit)
	defer cancel()
	for wait := time.Millisecond; showsIn(dir); wait *= 2 {
		select {
		case <-time.After(wait): // the kernel tells nobody
		case <-ctx.Done():
			return
		}
	}
}

func showsIn(dir string) bool {
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return false
	}
	for _, name := range names {
		path, err := os.ReadFile(name)
		if err == nil && strings.HasPrefix(string(path), dir+"/") {
			return true
		}
	}
	return false
}

// find returns a device that shows the whole of the file that st describes for reading only
// and goes with its last user; nil if there is none.
func find(st *unix.Stat_t) (*Device, error) {
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		path, err := os.ReadFile(name)
		if err != nil {
			continue // it has gone meanwhile
		}
		// Other people's devices are not even opened.
		var other unix.Stat_t
		if unix.Stat(strings.TrimSuffix(string(path), "\n"), &other) != nil || other.Dev != st.Dev || other.Ino != st.Ino {
			continue
		}
		var n int
		if _, err := fmt.Sscanf(name, "/sys/block/loop%d/", &n); err != nil {
			return nil, err
		}
		if d := openIfOf(n, st); d != nil {
			return d, nil
		}
	}
	return nil, nil
}

// openIfOf opens device n, which then stays, and looks again: it may just have been given
// to another file.
func openIfOf(n int, st *unix.Stat_t) *Device {
	dev, err := openNode(n, unix.LO_FLAGS_READ_ONLY)
	if err != nil {
		return nil
	}
	const want = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if err != nil || info.Device != st.Dev || info.Inode != st.Ino || info.Offset != 0 || info.Sizelimit != 0 || info.Flags&want != want {
		dev.Close()
		return nil
	}
	d, err := open(dev)
	if err != nil {
		return nil
	}
	return d
}
