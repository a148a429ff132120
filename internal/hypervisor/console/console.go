// Package console owns what becomes of a machine's serial output: a bounded log on disk that
// many can follow, and the live end to type into. It knows nothing of the VMM that the
// machine is run by.
package console

import (
	"context"
	"io"
	"path/filepath"

	"banger/internal/hypervisor"
)

// Notes for [Open], which tell the parts of a log apart.
const (
	StartNote = "\r\n[banger: the machine starts]\r\n"
	GapNote   = "\r\n[banger: nobody listened for a while; output may be missing here]\r\n"
)

// Console drains a machine's serial port into its log and types into it.
type Console struct {
	port io.ReadWriteCloser
	ring *Ring
	done chan struct{}
}

var _ hypervisor.Console = (*Console)(nil)

// Open starts to drain a serial port into the log in dir, and takes charge of it. If there
// is a log already, note is written to it first.
func Open(port io.ReadWriteCloser, dir, note string) (*Console, error) {
	ring, err := OpenRing(filepath.Join(dir, consoleLog), logBytes)
	if err != nil {
		port.Close()
		return nil, err
	}
	if ring.size > 0 {
		_, _ = io.WriteString(ring, note) // never fails
	}
	c := &Console{port: port, ring: ring, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		defer ring.Close()
		defer port.Close()
		_, _ = io.Copy(onlyWriter{ring}, port) // any error is the end of the machine
	}()
	return c, nil
}

// onlyWriter hides a writer's other methods from io.Copy.
type onlyWriter struct{ io.Writer }

// Log reads the log; see [hypervisor.Console].
func (c *Console) Log(ctx context.Context, follow bool) (io.ReadCloser, error) {
	return c.ring.reader(ctx.Done(), follow, false)
}

// Attach reads the log from now on, which is also where a slow reader catches up.
func (c *Console) Attach() (io.ReadWriteCloser, error) {
	r, err := c.ring.reader(nil, true, true)
	if err != nil {
		return nil, err
	}
	return attached{r, c.port}, nil
}

type attached struct {
	io.ReadCloser
	io.Writer
}

// Done is closed when the port has gone and the log is complete.
func (c *Console) Done() <-chan struct{} { return c.done }

// Close stops draining and ends those who follow.
func (c *Console) Close() {
	c.port.Close()
	<-c.done
}
