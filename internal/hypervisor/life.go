package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
)

// Life is that of a machine's process, from its launch or adoption until it ends or is let go of.
// It is a part of each driver's machine: the part of [Machine] that is the same for all.
type Life struct {
	Line *Line // to the machine's control channel

	record  Record
	held    context.Context // until Close
	letGo   context.CancelFunc
	watched chan struct{} // closed when watch has returned
	done    chan struct{} // closed when the process is gone

	mu       sync.Mutex
	handle   *host.Handle
	released bool // handle is closed
	killed   bool // by Kill
	exit     Exit
}

// Ending is what the kernel and this process know of the end of a machine's process.
type Ending struct {
	Status syscall.WaitStatus // if Known
	Known  bool               // it was a child of this process
	Killed bool               // by Kill
}

// NewLife makes the life of a machine whose process is still to be begun with. What the record
// says of that process need not be there yet.
func NewLife(rec Record) *Life {
	l := &Life{record: rec, watched: make(chan struct{}), done: make(chan struct{})}
	l.held, l.letGo = context.WithCancel(context.Background())
	l.Line = NewLine(l.held, l.done, l.gone)
	return l
}

// Launched begins with a child of this process. Once that has ended, bury is called, which waits
// until all is read that it still said, takes its files away, and tells how it went.
func (l *Life) Launched(child *host.Child, bury func(Ending) Exit) {
	l.record.Process, l.handle = child.Process, child.Handle()
	go l.watch(child.Done(), func() Ending {
		status, known := child.State().Sys().(syscall.WaitStatus)
		return Ending{Status: status, Known: known}
	}, bury)
}

// Adopted begins with the process of the record, which the handle is on; see [Life.Launched].
func (l *Life) Adopted(handle *host.Handle, bury func(Ending) Exit) {
	l.handle = handle
	go l.watch(handle.Done(), func() Ending { return Ending{} }, bury)
}

// watch waits for the process's end, which ended tells, or for Close.
func (l *Life) watch(ended <-chan struct{}, ending func() Ending, bury func(Ending) Exit) {
	defer close(l.watched)
	select {
	case <-ended:
	case <-l.held.Done():
		return
	}
	e := ending()
	l.mu.Lock()
	e.Killed = l.killed
	l.mu.Unlock()
	exit := bury(e)
	l.release()
	l.mu.Lock()
	l.exit = exit
	l.mu.Unlock()
	close(l.done)
}

// Record tells how the machine is found again.
func (l *Life) Record() Record { return l.record }

// Usage tells what the process takes of the host now.
func (l *Life) Usage() (host.Usage, error) { return l.record.Process.Usage() }

// Done is closed once the process is gone.
func (l *Life) Done() <-chan struct{} { return l.done }

// Exit tells how the process ended, once Done is closed.
func (l *Life) Exit() Exit {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.exit
}

func (l *Life) gone() error {
	return errs.New(errs.Unavailable, "machine %s is not running any more", l.record.VMID).Because(errors.New(l.Exit().Reason))
}

// Kill ends the process at once and waits until it is gone.
func (l *Life) Kill(ctx context.Context) error {
	if err := l.kill(); err != nil {
		return fmt.Errorf("kill machine %s: %w", l.record.VMID, err)
	}
	select {
	case <-l.done:
		return nil
	case <-l.held.Done():
		return net.ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("machine %s was killed and is still there: %w", l.record.VMID, ctx.Err())
	}
}

func (l *Life) kill() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return nil // it has ended
	}
	err := l.handle.Signal(unix.SIGKILL)
	if errs.KindOf(err) == errs.NotFound {
		return nil
	}
	l.killed = err == nil
	return err
}

// release closes the handle, once.
func (l *Life) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.released {
		l.released = true
		_ = l.handle.Close()
	}
}

// LetGo lets go of the machine without ending it; hangUp closes the driver's connections.
func (l *Life) LetGo(hangUp func()) {
	l.letGo()
	hangUp()
	<-l.watched
	l.release()
}
