package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/console"
)

// machine is one Firecracker process, launched or adopted.
type machine struct {
	record  hypervisor.Record
	api     *apiClient
	has     features
	console *console.Console
	log     *drain
	knocker *knocker
	handle  *host.Handle
	child   *host.Child // nil if adopted
	line    *hypervisor.Line

	held    context.Context // until Close
	letGo   context.CancelFunc
	watched chan struct{} // closed when watch has returned
	done    chan struct{} // closed when the process is gone

	mu       sync.Mutex
	released bool // handle is closed
	killed   bool // by Kill
	exit     hypervisor.Exit
}

var _ hypervisor.Machine = (*machine)(nil)

func newMachine(rec hypervisor.Record) *machine {
	m := &machine{record: rec, watched: make(chan struct{}), done: make(chan struct{})}
	m.api = newClient(func(ctx context.Context) (net.Conn, error) { return dial(ctx, rec.Dir, apiSocket) })
	m.held, m.letGo = context.WithCancel(context.Background())
	m.line = hypervisor.NewLine(m.held, m.done, m.gone)
	return m
}

// open opens what Firecracker is heard by: console, log and the guest's knock.
func (m *machine) open(note string) error {
	port, err := openSerial(m.record.Dir)
	if err != nil {
		return err
	}
	if m.console, err = console.Open(port, m.record.Dir, note); err != nil {
		return fmt.Errorf("open the console of machine %s: %w", m.record.VMID, err)
	}
	if m.log, err = openDrain(m.record.Dir); err != nil {
		return fmt.Errorf("open the log of machine %s: %w", m.record.VMID, err)
	}
	if m.knocker, err = openKnocker(m.record.Dir); err != nil {
		return fmt.Errorf("listen for the guest of machine %s: %w", m.record.VMID, err)
	}
	return nil
}

// hangUp closes what open has opened, as far as it got.
func (m *machine) hangUp() {
	m.api.close()
	if m.console != nil {
		m.console.Close()
	}
	if m.log != nil {
		m.log.close()
	}
	if m.knocker != nil {
		m.knocker.close()
	}
}

// watch waits for the process's end, which gone tells, or for Close.
func (m *machine) watch(gone <-chan struct{}) {
	defer close(m.watched)
	select {
	case <-gone:
	case <-m.held.Done():
		return
	}
	// The pipes end with the process; what is in them is read first.
	<-m.console.Done()
	<-m.log.done
	m.hangUp()
	// Its directory may be gone, and whoever removes that removes these.
	_ = clear(m.record.Dir)
	m.release()
	m.mu.Lock()
	m.exit = m.explain()
	m.mu.Unlock()
	close(m.done)
}

// ends are what the exit codes mean that Firecracker gives to signals of its own.
var ends = map[int]string{
	148: "it made a system call that its filter forbids",
	149: "it ran into memory that is not there (SIGBUS)",
	150: "it ran into memory that is not its own (SIGSEGV)",
	151: "a file of its grew larger than it may (SIGXFSZ)",
	154: "it has used up its time (SIGXCPU)",
	155: "it wrote to a pipe that nobody reads (SIGPIPE)",
	156: "it lost its terminal (SIGHUP)",
	157: "it came upon an instruction that is none (SIGILL)",
}

// explain says how the process ended. m.mu is held.
func (m *machine) explain() hypervisor.Exit {
	e := hypervisor.Exit{At: time.Now()}
	code, known := loggedExit(m.record.Dir)
	var status syscall.WaitStatus
	if m.child != nil {
		status, _ = m.child.State().Sys().(syscall.WaitStatus)
		code, known = status.ExitStatus(), status.Exited()
	}
	words := lastWords(m.record.Dir)
	switch {
	case known && code == 0:
		// It has one way out, so this is all that can be told.
		e.Reason, e.Clean = "powered off or restarted by the guest, or by a panic of its kernel", true
	case m.killed:
		e.Reason = "killed on request"
	case status.Signaled():
		e.Reason = fmt.Sprintf("Firecracker was killed by signal %d (%v)", status.Signal(), status.Signal())
	case known && ends[code] != "":
		e.Reason = "Firecracker failed: " + ends[code]
	case known && words != "": // else they may be of long ago
		e.Reason = "Firecracker failed: " + words
	default:
		e.Reason = "Firecracker ended unexpectedly"
	}
	return e
}

func (m *machine) Record() hypervisor.Record   { return m.record }
func (m *machine) Console() hypervisor.Console { return m.console }
func (m *machine) Done() <-chan struct{}       { return m.done }

func (m *machine) Exit() hypervisor.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

func (m *machine) Usage() (host.Usage, error) { return m.record.Process.Usage() }

// Halts never tells anything: Firecracker reports a write that fails to the guest.
func (m *machine) Halts() <-chan string { return nil }

// Forward implements [hypervisor.Machine]: no NIC of Firecracker's has the mode user.
func (m *machine) Forward(context.Context, hypervisor.Forward, bool) error {
	return errs.New(errs.Invalid, "Firecracker forwards no ports")
}

// Channel connects to the guest's agent once that is there; see [hypervisor.Machine].
func (m *machine) Channel(ctx context.Context) (net.Conn, error) {
	return m.line.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		for {
			// The first connection waits for the guest to say that it is there; so does one
			// that has failed, for then it is not.
			select {
			case <-m.knocker.heard:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			if conn, err := connectGuest(ctx, m.record.Dir); err == nil {
				m.knocked() // for the next one
				return conn, nil
			}
		}
	})
}

// knocked notes that the guest's agent has been there.
func (m *machine) knocked() {
	select {
	case m.knocker.heard <- struct{}{}:
	default:
	}
}

func (m *machine) gone() error {
	return errs.New(errs.Unavailable, "machine %s is not running any more", m.record.VMID).Because(errors.New(m.Exit().Reason))
}

// Pause stops the virtual CPUs.
func (m *machine) Pause(ctx context.Context) error {
	if !m.has.pauseHolds {
		return errs.New(errs.Unavailable, "Firecracker 1.16 loses the connection to a guest that it pauses").Try("install 1.15 or %s", newest)
	}
	return m.setState(ctx, "Paused")
}

// Resume lets the virtual CPUs run on.
func (m *machine) Resume(ctx context.Context) error { return m.setState(ctx, "Resumed") }

func (m *machine) setState(ctx context.Context, state string) error {
	if err := m.api.do(ctx, patch("/vm", vmState{state}), nil); err != nil {
		return fmt.Errorf("machine %s: %w", m.record.VMID, err)
	}
	return nil
}

// Save implements [hypervisor.Machine].
func (m *machine) Save(context.Context, *os.File, *os.File) error { return errNotSaved() }

// Kill ends the process; see [hypervisor.Machine].
func (m *machine) Kill(ctx context.Context) error {
	if err := m.kill(); err != nil {
		return fmt.Errorf("kill machine %s: %w", m.record.VMID, err)
	}
	select {
	case <-m.done:
		return nil
	case <-m.held.Done():
		return net.ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("machine %s was killed and is still there: %w", m.record.VMID, ctx.Err())
	}
}

func (m *machine) kill() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.released {
		return nil // it has ended
	}
	err := m.handle.Signal(unix.SIGKILL)
	if errs.KindOf(err) == errs.NotFound {
		return nil
	}
	m.killed = err == nil
	return err
}

// release closes the handle, once.
func (m *machine) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.released {
		m.released = true
		_ = m.handle.Close()
	}
}

// Close lets go of the machine; see [hypervisor.Machine].
func (m *machine) Close() error {
	m.letGo()
	m.hangUp()
	<-m.watched
	m.release()
	return nil
}
