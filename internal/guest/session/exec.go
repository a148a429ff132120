package session

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"sync"

	"banger/internal/guest/proto"
)

// IO is what a command is connected to. A nil Stdin, Stdout or Stderr is /dev/null in the
// guest. With a terminal, Stdout gets all output and Stderr is unused.
type IO struct {
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Resize  <-chan proto.Size // new sizes of the terminal; may be nil
	Signals <-chan string     // names for proto.ExecInput; may be nil
}

// Exec runs a command and returns once it has ended and all its output is written. The
// Session and FDs of x are filled in here. Where ctx ends first, the command gets a HUP.
//
// An *OutputError comes with a valid Exit; any other error means that nothing is known of
// how the command ended, a *proto.Error that it was never started. A goroutine that is
// blocked reading Stdin stays so until that read returns.
func Exec(ctx context.Context, open Open, x proto.Exec, stdio IO) (proto.Exit, error) {
	var id [16]byte
	rand.Read(id[:]) // never fails, see its doc
	x.Session = hex.EncodeToString(id[:])
	x.FDs = descriptors(x.TTY, stdio)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	streams, err := openAll(ctx, open, x)
	if err != nil {
		return proto.Exit{}, err
	}
	defer closeAll(streams)
	defer context.AfterFunc(ctx, func() { closeAll(streams) })()

	control := streams[len(streams)-1]
	go sendInput(ctx, control, stdio)
	output := copyStdio(x, streams, stdio)
	exit, err := awaitExit(ctx, control)
	if err != nil {
		return proto.Exit{}, err
	}
	if err := output(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return exit, &OutputError{err}
	}
	return exit, nil
}

// OutputError tells that a command ended but not all of its output could be passed on.
type OutputError struct{ Err error }

func (e *OutputError) Error() string { return "pass on the command's output: " + e.Err.Error() }
func (e *OutputError) Unwrap() error { return e.Err }

// descriptors lists those that get a stream.
func descriptors(tty bool, stdio IO) []int {
	fds := []int{}
	if tty {
		return append(fds, 0)
	}
	if stdio.Stdin != nil {
		fds = append(fds, 0)
	}
	if stdio.Stdout != nil {
		fds = append(fds, 1)
	}
	if stdio.Stderr != nil {
		fds = append(fds, 2)
	}
	return fds
}

// openAll opens the stdio streams in the order of x.FDs, then the exec stream, all at the
// same time.
func openAll(ctx context.Context, open Open, x proto.Exec) ([]Stream, error) {
	headers := make([]proto.Header, 0, 4)
	for _, fd := range x.FDs {
		headers = append(headers, proto.Header{Service: proto.ServiceStdio, Stdio: &proto.Stdio{Session: x.Session, FD: fd}})
	}
	headers = append(headers, proto.Header{Service: proto.ServiceExec, Exec: &x})

	streams := make([]Stream, len(headers))
	errs := make([]error, len(headers))
	var wg sync.WaitGroup
	for i, header := range headers {
		wg.Go(func() {
			s, err := open(ctx, header)
			if err == nil { // else s may be a nil pointer in disguise
				streams[i] = s
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		closeAll(streams)
		for _, err := range errs {
			if err != nil {
				return nil, err // one is enough for a person
			}
		}
	}
	return streams, nil
}

func closeAll(streams []Stream) {
	for _, s := range streams {
		if s != nil {
			s.Close()
		}
	}
}

// sendInput passes resizes and signals on until ctx ends.
func sendInput(ctx context.Context, control Stream, stdio IO) {
	for {
		var in proto.ExecInput
		select {
		case <-ctx.Done():
			return
		case size, ok := <-stdio.Resize:
			if !ok {
				stdio.Resize = nil
				continue
			}
			in.Resize = &size
		case name, ok := <-stdio.Signals:
			if !ok {
				stdio.Signals = nil
				continue
			}
			in.Signal = name
		}
		if proto.WriteFrame(control, in) != nil {
			return
		}
	}
}

// copyStdio starts the copies and returns a function that waits for the end of output.
func copyStdio(x proto.Exec, streams []Stream, stdio IO) (wait func() error) {
	var wg sync.WaitGroup
	errs := make([]error, len(x.FDs))
	for i, fd := range x.FDs {
		s := streams[i]
		if fd == 0 && stdio.Stdin != nil {
			go func() {
				io.Copy(onlyWriter{s}, stdio.Stdin) // an error means that the command reads no more
				s.CloseWrite()
			}()
		}
		var out io.Writer
		switch {
		case fd == 2:
			out = stdio.Stderr
		case fd == 1 || x.TTY:
			out = stdio.Stdout
		}
		if out == nil {
			continue
		}
		wg.Go(func() { errs[i] = copyOutput(out, s) })
	}
	return func() error {
		wg.Wait()
		return errors.Join(errs...)
	}
}

// copyOutput copies until the agent ends the stream. Where out fails, the stream is closed
// so that the command learns of it.
func copyOutput(out io.Writer, s Stream) error {
	_, err := io.CopyBuffer(onlyWriter{out}, onlyReader{s}, make([]byte, 64<<10))
	if err != nil {
		s.Close()
	}
	return err
}

// onlyWriter and onlyReader hide the methods that would make io.Copy choose its own buffer.
type onlyWriter struct{ io.Writer }
type onlyReader struct{ io.Reader }

// awaitExit passes over what it does not know: the agent of a VM that was started before
// an upgrade tells more.
func awaitExit(ctx context.Context, control Stream) (proto.Exit, error) {
	for {
		var event proto.ExecEvent
		if err := proto.ReadFrame(control, &event); err != nil {
			return proto.Exit{}, lost(ctx, err)
		}
		switch {
		case event.Error != nil:
			return proto.Exit{}, event.Error
		case event.Exit != nil:
			return *event.Exit, nil
		}
	}
}
