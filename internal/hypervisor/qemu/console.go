package qemu

import (
	"context"
	"io"
	"net"

	"banger/internal/hypervisor"
)

const (
	startNote = "\r\n[banger: the machine starts]\r\n"
	gapNote   = "\r\n[banger: nobody listened for a while; output may be missing here]\r\n"
)

// console drains a machine's serial port into its log and types into it.
type console struct {
	conn net.Conn
	ring *consoleRing
	done chan struct{} // closed when the port has gone and the log is complete
}

// openConsole connects to the serial port of the machine in dir and starts draining it. If
// there is a log already, note is written to it first, to tell the parts apart.
func openConsole(ctx context.Context, dir, note string) (*console, error) {
	conn, err := dial(ctx, dir, consoleSocket)
	if err != nil {
		return nil, err
	}
	ring, err := openConsoleRing(dir, consoleLogBytes)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if ring.size > 0 {
		_, _ = io.WriteString(ring, note) // never fails
	}
	c := &console{conn: conn, ring: ring, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		defer ring.Close()
		defer conn.Close()
		_, _ = io.Copy(onlyWriter{ring}, conn) // any error is the end of the machine
	}()
	return c, nil
}

// onlyWriter hides a writer's other methods from io.Copy.
type onlyWriter struct{ io.Writer }

var _ hypervisor.Console = (*console)(nil)

// Log reads the log; see [hypervisor.Console].
func (c *console) Log(ctx context.Context, follow bool) (io.ReadCloser, error) {
	return c.ring.reader(ctx.Done(), follow, false)
}

// Attach reads the log from now on, which is also where a slow reader catches up.
func (c *console) Attach() (io.ReadWriteCloser, error) {
	r, err := c.ring.reader(nil, true, true)
	if err != nil {
		return nil, err
	}
	return attached{r, c.conn}, nil
}

type attached struct {
	io.ReadCloser
	io.Writer
}

// Close stops draining and ends those who follow.
func (c *console) Close() {
	c.conn.Close()
	<-c.done
}
