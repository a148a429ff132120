// Package unixsock gives addresses to Unix sockets whatever the length of their path. It
// knows nothing of what is said on them.
package unixsock

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxPath is what the kernel's sun_path takes with its final zero byte, in bytes.
const maxPath = 107

// WithAddress calls fn with an address by which the socket at path can be bound or
// connected to while fn runs. A path that is too long for the kernel is reached through a
// descriptor of its directory.
func WithAddress(path string, fn func(address string) error) error {
	if len(path) <= maxPath {
		return fn(path)
	}
	dir, name := filepath.Split(path)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	return fn(fmt.Sprintf("/proc/self/fd/%d/%s", fd, name))
}

// Pair makes two sockets that are connected to each other.
func Pair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	one, other := os.NewFile(uintptr(fds[0]), "socket pair"), os.NewFile(uintptr(fds[1]), "socket pair")
	defer one.Close() // FileConn duplicates
	defer other.Close()
	first, err := net.FileConn(one)
	if err != nil {
		return nil, nil, err
	}
	second, err := net.FileConn(other)
	if err != nil {
		first.Close()
		return nil, nil, err
	}
	return first.(*net.UnixConn), second.(*net.UnixConn), nil
}
