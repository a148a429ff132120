package guestd

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// uevents is the kernel's stream of device events. It is opened before the first look at a
// device, so that no arrival is missed.
type uevents struct{ fd int }

func openUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	const kernelGroup = 1
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return &uevents{fd}, nil
}

func (u *uevents) close() { unix.Close(u.fd) }

var errNoDevice = errors.New("it did not appear")

// await returns once ready says so, asking again after each event, or errNoDevice.
func (u *uevents) await(limit time.Duration, ready func() bool) error {
	deadline := time.Now().Add(limit)
	buf := make([]byte, 8<<10)
	for !ready() {
		left := time.Until(deadline)
		if left <= 0 {
			return errNoDevice
		}
		tv := unix.NsecToTimeval(left.Nanoseconds())
		if err := unix.SetsockoptTimeval(u.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		_, err := unix.Read(u.fd, buf)
		switch err {
		case nil, unix.EINTR, unix.ENOBUFS, unix.EAGAIN: // ENOBUFS: events were lost, so look again
		default:
			return os.NewSyscallError("read device events", err)
		}
	}
	return nil
}
