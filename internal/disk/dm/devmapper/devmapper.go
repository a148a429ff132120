// Package devmapper owns the kernel's device-mapper as a Go program sees it: devices with a
// table, made, looked at and removed through ioctls on /dev/mapper/control. It needs no
// dmsetup and no udev, and knows nothing of what the devices are for.
package devmapper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel refuses a request with, for errors.Is.
var (
	ErrNone  = errors.New("there is no such device")
	ErrInUse = errors.New("it is open")
	ErrTaken = errors.New("there is such a device already")
	ErrTable = errors.New("the kernel refuses its table, and says why in its log")
)

// Target is a range of a device and what serves it, as in `dmsetup table`.
type Target struct {
	Start, Sectors uint64 // of 512 bytes
	Type           string // snapshot, linear, zero…
	Params         string // of the table or, from Status, the status
}

// Device is a device as the kernel knows it.
type Device struct {
	Name         string
	Major, Minor uint32
	OpenCount    int
	ReadOnly     bool
	Live         bool // it has a table and is not suspended
}

// Ioctl makes one request of device-mapper, with a buffer that begins with a unix.DmIoctl.
type Ioctl func(request uint, buf []byte) error

// Control makes devices. It has no state of its own.
type Control struct{ ioctl Ioctl }

// New returns a Control for the kernel behind ioctl: [Host] or, in tests, another one.
func New(ioctl Ioctl) *Control { return &Control{ioctl} }

// busyLimit bounds how long a removal waits for those who look at a device for a moment, as
// udev does with each.
const busyLimit = 3 * time.Second

// Create makes a device with a table and lets it work. On error there is no device.
// ErrTaken: one of that name is there.
func (c *Control) Create(ctx context.Context, name, uuid string, readOnly bool, table []Target) (Device, error) {
	if _, _, err := c.call(unix.DM_DEV_CREATE, header{name: name, uuid: uuid}, nil); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = ErrTaken
		}
		return Device{}, fmt.Errorf("make device %s: %w", name, err)
	}
	d, err := c.load(name, readOnly, table)
	if err != nil {
		return Device{}, errors.Join(fmt.Errorf("make device %s: %w", name, err), c.Remove(context.WithoutCancel(ctx), name))
	}
	return d, nil
}

func (c *Control) load(name string, readOnly bool, table []Target) (Device, error) {
	h := header{name: name, targets: uint32(len(table))}
	if readOnly {
		h.flags = unix.DM_READONLY_FLAG
	}
	if _, _, err := c.call(unix.DM_TABLE_LOAD, h, encodeTable(table)); err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENXIO) {
			err = fmt.Errorf("%w (%w)", ErrTable, err)
		}
		return Device{}, err
	}
	// Resuming makes the table that was loaded the live one.
	out, _, err := c.call(unix.DM_DEV_SUSPEND, header{name: name, event: udevFlags}, nil)
	return device(out), err
}

// Remove takes a device away. Finding none is success. ErrInUse: it is open, and stays so.
func (c *Control) Remove(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, busyLimit)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait *= 2 {
		_, _, err := c.call(unix.DM_DEV_REMOVE, header{name: name, event: udevFlags}, nil)
		switch {
		case errors.Is(err, unix.ENXIO):
			return nil
		case errors.Is(err, unix.EBUSY):
			err = ErrInUse // and nothing tells when it no longer is
		case err == nil:
			return nil
		}
		if !errors.Is(err, ErrInUse) {
			return fmt.Errorf("remove device %s: %w", name, err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("remove device %s: %w", name, err)
		}
	}
}

// Get looks at a device. ErrNone if it is not there.
func (c *Control) Get(name string) (Device, error) {
	out, _, err := c.call(unix.DM_DEV_STATUS, header{name: name}, nil)
	return device(out), named(name, err)
}

// Status returns what each target of a device says of itself. ErrNone.
func (c *Control) Status(name string) ([]Target, error) {
	out, data, err := c.call(unix.DM_TABLE_STATUS, header{name: name}, nil)
	if err != nil {
		return nil, named(name, err)
	}
	return decodeTable(data, int(out.Target_count))
}

func named(name string, err error) error {
	if errors.Is(err, unix.ENXIO) {
		err = ErrNone
	}
	if err != nil {
		return fmt.Errorf("look at device %s: %w", name, err)
	}
	return nil
}

// List returns the names of all devices of the host.
func (c *Control) List() ([]string, error) {
	_, data, err := c.call(unix.DM_LIST_DEVICES, header{}, nil)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return decodeNames(data)
}

// HasTarget tells why the kernel has no such type of target; nil if it has. It loads the
// module that brings it.
func (c *Control) HasTarget(name string) error {
	_, _, err := c.call(unix.DM_GET_TARGET_VERSION, header{name: name}, nil)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENXIO) {
		err = fmt.Errorf("this kernel has no target %q (module dm-%s)", name, name)
	}
	return err
}

// Node is the path of a device's node in /dev, which it makes where neither devtmpfs nor
// udev does.
func Node(d Device) (string, error) {
	path := fmt.Sprintf("/dev/dm-%d", d.Minor)
	want := unix.Mkdev(d.Major, d.Minor)
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		err = unix.Mknod(path, unix.S_IFBLK|0o600, int(want))
	case err == nil && (st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != want):
		err = errors.New("it is something else")
	}
	if err != nil {
		return "", &fs.PathError{Op: "make a node at", Path: path, Err: err}
	}
	return path, nil
}

// RemoveNode takes away the node of a device that is gone, if it is still there.
func RemoveNode(d Device) error {
	path := fmt.Sprintf("/dev/dm-%d", d.Minor)
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Rdev != unix.Mkdev(d.Major, d.Minor) {
		return nil
	}
	if _, err := os.Stat(fmt.Sprintf("/sys/dev/block/%d:%d", d.Major, d.Minor)); err == nil {
		return nil // the number belongs to another device already
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
