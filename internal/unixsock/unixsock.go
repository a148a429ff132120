// Package unixsock gives addresses to Unix sockets whatever the length of their path. It
// knows nothing of what is said on them.
package unixsock

import (
	"fmt"
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
