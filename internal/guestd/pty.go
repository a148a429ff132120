package guestd

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/guest/proto"
)

// ttyGroup is the group of terminals on every Linux distribution.
const ttyGroup = 5

// openPTY makes a terminal that belongs to u: the pollable master, and the slave's
// descriptor.
func openPTY(u account, size *proto.Size) (master *os.File, slave int, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open a terminal: %w", err)
	}
	slave, err = openSlave(fd, u, size)
	if err != nil {
		unix.Close(fd)
		return nil, 0, fmt.Errorf("open a terminal: %w", err)
	}
	return os.NewFile(uintptr(fd), "pty"), slave, nil
}

func openSlave(master int, u account, size *proto.Size) (int, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return 0, err
	}
	// By descriptor, not by name: /dev/pts may be another instance's.
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER,
		unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return 0, errno
	}
	slave := int(fd)
	if size != nil {
		unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	}
	if os.Geteuid() == 0 {
		unix.Fchown(slave, int(u.uid), ttyGroup)
		unix.Fchmod(slave, 0o620)
	}
	return slave, nil
}
