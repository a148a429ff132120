package qemu

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"

	"banger/internal/jail"
	"banger/internal/unixsock"
)

// The sockets of a machine, in its directory. This process makes them and QEMU inherits
// them listening, so they can be connected to before QEMU has even started.
const (
	monitorSocket = "qmp.sock"
	consoleSocket = "console.sock"
	channelSocket = "channel.sock"

	numSockets = 3
)

func socketNames() [numSockets]string { return [3]string{monitorSocket, consoleSocket, channelSocket} }

// listen makes a listening socket in dir, in the place of any stale one, and returns it
// as a file for QEMU to inherit.
func listen(dir, name string) (*os.File, error) {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var file *os.File
	err := unixsock.WithAddress(filepath.Join(dir, name), func(address string) error {
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
		if err != nil {
			return err
		}
		// The file is removed with the machine, not when our copy of the socket closes.
		ln.SetUnlinkOnClose(false)
		defer ln.Close()
		file, err = ln.File()
		return err
	})
	if err != nil {
		return nil, err
	}
	// Nobody else gets as far as this file, in a directory that only its owner enters.
	if err := os.Chmod(filepath.Join(dir, name), 0o600); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// sockets are a machine's listening sockets, in the order of socketNames.
type sockets []*os.File

// listenAll makes all sockets of a machine. The caller closes what it returns, also
// beside an error.
func listenAll(dir string) (sockets, error) {
	var made sockets
	for _, name := range socketNames() {
		f, err := listen(dir, name)
		if err != nil {
			return made, err
		}
		made = append(made, f)
	}
	return made, nil
}

// close closes this process's copies; doing it again is harmless.
func (s sockets) close() {
	for _, f := range s {
		f.Close()
	}
}

// dial connects to a machine's socket.
func dial(ctx context.Context, dir, name string) (net.Conn, error) {
	var conn net.Conn
	err := unixsock.WithAddress(filepath.Join(dir, name), func(address string) (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", address)
		return err
	})
	return conn, err
}

// clear takes away what is left of a machine that is gone beside its logs.
func clear(dir string) error { return errors.Join(removeSockets(dir), jail.RemoveGroup(dir)) }

// removeSockets takes away the socket files of a machine that is gone.
func removeSockets(dir string) error {
	var failed []error
	for _, name := range socketNames() {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
