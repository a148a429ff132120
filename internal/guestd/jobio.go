package guestd

import (
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest/proto"
)

// pipeSize is the capacity of a command's pipes: fewer wake-ups for bulk data than with
// the kernel's 64 KiB.
const pipeSize = 256 << 10

// childFDs are the ends of pipes and terminals that a new command gets.
type childFDs struct {
	fds   []uintptr // its descriptors 0, 1, 2
	owned []int     // to be closed here once it has them
}

func (c *childFDs) close() {
	for _, fd := range c.owned {
		unix.Close(fd)
	}
}

// connect makes the pipes or the terminal between a command and std.
func (j *job) connect(s spec, std stdio) (*childFDs, error) {
	const unset = ^uintptr(0)
	child := &childFDs{fds: []uintptr{unset, unset, unset}}
	var err error
	switch {
	case s.detach:
		err = child.connectConsole()
	case s.tty:
		err = j.connectTTY(s, std, child)
	default:
		err = j.connectPipes(std, child)
	}
	if err != nil {
		child.close()
		return nil, err
	}
	if !slices.Contains(child.fds, unset) {
		return child, nil
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		child.close()
		return nil, &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	child.owned = append(child.owned, null)
	for i, fd := range child.fds {
		if fd == unset {
			child.fds[i] = uintptr(null)
		}
	}
	return child, nil
}

// connectConsole gives a command without a client the machine's console to write to.
func (c *childFDs) connectConsole() error {
	console, err := unix.Open("/dev/console", unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/console", Err: err}
	}
	c.owned = append(c.owned, console)
	c.fds[1], c.fds[2] = uintptr(console), uintptr(console)
	return nil
}

func (j *job) connectTTY(s spec, std stdio, child *childFDs) error {
	pty, slave, err := openPTY(s.user, s.size)
	if err != nil {
		return err
	}
	j.pty = pty
	child.owned = append(child.owned, slave)
	child.fds = []uintptr{uintptr(slave), uintptr(slave), uintptr(slave)}
	if std.out != nil {
		j.outputs = append(j.outputs, newOutput(pty, std.out))
	}
	return nil
}

func (j *job) connectPipes(std stdio, child *childFDs) error {
	if std.in != nil {
		r, w, err := pipe()
		if err != nil {
			return err
		}
		child.fds[0] = uintptr(r)
		child.owned = append(child.owned, r)
		j.inputs = append(j.inputs, pollable(w, "stdin"))
	}
	for fd, w := range map[int]io.Writer{1: std.out, 2: std.err} {
		if w == nil {
			continue
		}
		r, cw, err := pipe()
		if err != nil {
			return err
		}
		child.fds[fd] = uintptr(cw)
		child.owned = append(child.owned, cw)
		j.outputs = append(j.outputs, newOutput(pollable(r, "output"), w))
	}
	return nil
}

func pipe() (r, w int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, os.NewSyscallError("pipe2", err)
	}
	unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, pipeSize) // over a user's limit it stays as it is
	return p[0], p[1], nil
}

// pollable makes a file of an end that this process keeps; deadlines work on it.
func pollable(fd int, name string) *os.File {
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

// closeOwn closes this process's ends where no command was started.
func (j *job) closeOwn() {
	for _, o := range j.outputs {
		o.from.Close()
	}
	for _, in := range j.inputs {
		in.Close()
	}
	if j.pty != nil {
		j.pty.Close()
	}
}

// pump starts the copies.
func (j *job) pump(std stdio) {
	for _, o := range j.outputs {
		go o.copy()
	}
	switch {
	case std.in == nil:
	case j.pty != nil:
		go typeInto(j.pty, std.in)
	default:
		go feed(j.inputs[0], std.in)
	}
}

// feed copies a command's input and ends it. It stops when the command reads no more.
func feed(pipe *os.File, in io.Reader) {
	_, err := io.CopyBuffer(struct{ io.Writer }{pipe}, struct{ io.Reader }{in}, make([]byte, 64<<10))
	pipe.Close()
	if stream, ok := in.(interface{ Reset() error }); ok && err != nil {
		stream.Reset() // so that the client stops sending
	}
}

// typeInto copies to a terminal. The end of input becomes the terminal's end-of-file
// character: a terminal can't be closed in one direction.
func typeInto(pty *os.File, in io.Reader) {
	_, err := io.CopyBuffer(struct{ io.Writer }{pty}, struct{ io.Reader }{in}, make([]byte, 4<<10))
	if err == nil {
		pty.Write([]byte{4})
	}
}

// output copies what a command writes to one descriptor, or to its terminal.
type output struct {
	from  *os.File
	to    io.Writer
	ended chan struct{} // the command has ended
	done  chan struct{} // all is copied
}

func newOutput(from *os.File, to io.Writer) *output {
	return &output{from: from, to: to, ended: make(chan struct{}), done: make(chan struct{})}
}

// copy runs until the last writer has closed its end, or until finish is called and
// nothing that was written before is left.
func (o *output) copy() {
	defer close(o.done)
	buf := make([]byte, 64<<10)
	err := o.stream(buf)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		o.rest(buf)
	case errors.Is(err, unix.EIO):
		// A terminal that nobody has open. Programs close their files a moment before
		// they end, and closing the master now would kill them by SIGHUP.
		<-o.ended
		o.rest(buf)
	}
	o.from.Close() // a background process that still writes gets SIGPIPE
	if c, ok := o.to.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
}

func (o *output) stream(buf []byte) error {
	for {
		n, err := o.from.Read(buf)
		if n > 0 {
			if _, werr := o.to.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err != nil {
			return err
		}
	}
}

// rest copies what is left without waiting for more. Its bound, the most that a pipe
// holds, keeps a background process that goes on writing from going on for ever here.
func (o *output) rest(buf []byte) {
	o.from.SetReadDeadline(time.Time{})
	raw, err := o.from.SyscallConn()
	if err != nil {
		return
	}
	for left := 1 << 20; left > 0; {
		n := 0
		raw.Read(func(fd uintptr) bool {
			n, _ = unix.Read(int(fd), buf)
			return true // never wait
		})
		if n <= 0 {
			return
		}
		if _, err := o.to.Write(buf[:n]); err != nil {
			return
		}
		left -= n
	}
}

// finish tells that the command has ended.
func (o *output) finish() {
	o.from.SetReadDeadline(time.Unix(1, 0))
	close(o.ended)
}

// resize sets the terminal's size; the kernel tells the command.
func (j *job) resize(size proto.Size) {
	if j.pty == nil {
		return
	}
	raw, err := j.pty.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}
