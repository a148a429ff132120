package firecracker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The named pipes of a machine, in its directory. Firecracker has both ends of each open, so
// they outlive every daemon; what nobody reads stays in them, 64 KiB, and then it drops more
// rather than wait.
const (
	consoleInPipe  = "console.in"
	consoleOutPipe = "console.out"
	logPipe        = "log.pipe"
	metricsPipe    = "metrics.pipe"
)

// makePipe makes a pipe, in the place of any stale one.
func makePipe(dir, name string) error {
	path := filepath.Join(dir, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	return nil
}

// openPipe opens a pipe with these flags, never to wait for another end.
func openPipe(dir, name string, flags int) (*os.File, error) {
	path := filepath.Join(dir, name)
	fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// pipes are the ends that Firecracker is given as its standard files. As long as this
// process has them too, its own readers do not see an end.
type pipes struct{ in, out, log, metrics *os.File }

// makePipes makes all pipes of a machine. The caller closes what it returns, also beside an
// error.
func makePipes(dir string) (p pipes, err error) {
	for _, x := range []struct {
		name string
		file **os.File
	}{{consoleInPipe, &p.in}, {consoleOutPipe, &p.out}, {logPipe, &p.log}, {metricsPipe, &p.metrics}} {
		if err := makePipe(dir, x.name); err != nil {
			return p, err
		}
		if *x.file, err = openPipe(dir, x.name, unix.O_RDWR); err != nil {
			return p, err
		}
	}
	return p, nil
}

// close closes this process's ends; doing it again is harmless.
func (p pipes) close() {
	for _, f := range []*os.File{p.in, p.out, p.log, p.metrics} {
		if f != nil {
			f.Close()
		}
	}
}

// serialPort is the daemon's end of a machine's console.
type serialPort struct{ out, in *os.File }

func openSerial(dir string) (serialPort, error) {
	out, err := openPipe(dir, consoleOutPipe, unix.O_RDONLY)
	if err != nil {
		return serialPort{}, fmt.Errorf("open the console: %w", err)
	}
	// For reading too, or it could not be opened once Firecracker has gone.
	in, err := openPipe(dir, consoleInPipe, unix.O_RDWR)
	if err != nil {
		out.Close()
		return serialPort{}, fmt.Errorf("open the console: %w", err)
	}
	return serialPort{out, in}, nil
}

func (s serialPort) Read(b []byte) (int, error)  { return s.out.Read(b) }
func (s serialPort) Write(b []byte) (int, error) { return s.in.Write(b) }
func (s serialPort) Close() error                { return errors.Join(s.out.Close(), s.in.Close()) }
