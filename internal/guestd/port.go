package guestd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// serveHost serves the channel that the machine has.
func (a *Agent) serveHost() error {
	if slices.Contains(virtioIDs(), virtioVsock) {
		return a.serveVsock()
	}
	path, err := findPort()
	if err != nil {
		return err
	}
	return a.servePort(path)
}

// portName is the name that the host gives the control channel's virtio-serial port.
const portName = "banger"

// deviceTimeout bounds the wait for a device that the host promised.
const deviceTimeout = 60 * time.Second

// findPort waits for the port and returns its device's path.
func findPort() (string, error) {
	events, err := openUevents()
	if err != nil {
		return "", err
	}
	defer events.close()
	var path string
	err = events.await(deviceTimeout, func() bool {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name") // the pattern is well-formed
		for _, name := range names {
			if text, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(text)) == portName {
				path = "/dev/" + filepath.Base(filepath.Dir(name))
				return true
			}
		}
		return false
	})
	if err != nil {
		return "", fmt.Errorf("virtio-serial port %q: %w", portName, err)
	}
	return path, nil
}

// port is one session's hold on the open port, as a connection. The runtime polls it,
// edge-triggered: a write without a host waits for one. Close interrupts both directions
// and leaves the port open for the next session, whose handshake skips what is left of
// this one; opening it again could fail, as a command that is just being started still
// has a copy of it, and only one may have it open.
type port struct{ *os.File }

func (p port) Close() error         { return p.SetDeadline(time.Unix(1, 0)) }
func (p port) LocalAddr() net.Addr  { return portAddr(p.Name()) }
func (p port) RemoteAddr() net.Addr { return portAddr(portName) }

type portAddr string

func (a portAddr) Network() string { return "virtio-serial" }
func (a portAddr) String() string  { return string(a) }

// servePort serves session after session until the port itself is gone.
func (a *Agent) servePort(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if err := f.SetDeadline(time.Time{}); err != nil {
			return err
		}
		// The end of a session is the host's going: nothing to report. The next one
		// begins with a write, which waits for the next host: this never spins.
		err := a.ServeConn(port{f})
		if _, ok := errors.AsType[syscall.Errno](err); ok {
			return err
		}
	}
}
