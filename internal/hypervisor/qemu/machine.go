package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/console"
)

// machine is one QEMU process, launched or adopted.
type machine struct {
	record  hypervisor.Record
	console *console.Console
	monitor *monitor
	handle  *host.Handle
	child   *host.Child // nil if adopted
	line    *hypervisor.Line

	held    context.Context // until Close
	letGo   context.CancelFunc
	watched chan struct{} // closed when watch has returned
	done    chan struct{} // closed when the process is gone
	halts   chan string   // why the CPUs have stopped; holds the last reason nobody has read

	migrating sync.Mutex  // held while state is saved or loaded
	migration chan string // news of that: what QEMU calls its status

	mu       sync.Mutex
	released bool // handle is closed
	killed   bool // by Kill
	shutdown shutdownEvent
	ioError  string // of the last BLOCK_IO_ERROR
	exit     hypervisor.Exit
}

var _ hypervisor.Machine = (*machine)(nil)

func newMachine(rec hypervisor.Record) *machine {
	m := &machine{record: rec, watched: make(chan struct{}), done: make(chan struct{}), halts: make(chan string, 1), migration: make(chan string, 8)}
	m.held, m.letGo = context.WithCancel(context.Background())
	m.line = hypervisor.NewLine(m.held, m.done, m.gone)
	return m
}

func (m *machine) dialMonitor(ctx context.Context) (*monitor, error) {
	conn, err := dial(ctx, m.record.Dir, monitorSocket)
	if err != nil {
		return nil, fmt.Errorf("connect QEMU's monitor: %w", err)
	}
	return newMonitor(ctx, conn, m.event)
}

// shutdownEvent is why QEMU ends: the data of its SHUTDOWN event.
type shutdownEvent struct {
	Reason string `json:"reason"` // guest-shutdown, guest-reset, host-signal…; empty: none was seen
}

// event keeps of QEMU's events what explains an end.
func (m *machine) event(name string, data json.RawMessage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch name {
	case "MIGRATION":
		m.migrated(data)
	case "SHUTDOWN":
		// What does not decode leaves the reason empty, as if there were no event.
		_ = json.Unmarshal(data, &m.shutdown)
	case "BLOCK_IO_ERROR":
		var e struct {
			Reason  string `json:"reason"`
			Action  string `json:"action"`
			NoSpace bool   `json:"nospace"`
		}
		_ = json.Unmarshal(data, &e)
		m.ioError = e.Reason
		if e.NoSpace {
			m.ioError = "the host's filesystem is full"
		}
		if e.Action == "stop" {
			m.halt(m.ioError)
		}
	}
}

// halt reports why the CPUs have stopped. Every write under way fails with an event of its
// own; one of them is enough.
func (m *machine) halt(why string) {
	select {
	case m.halts <- why:
	default:
	}
}

// Halts implements [hypervisor.Machine].
func (m *machine) Halts() <-chan string { return m.halts }

// watch waits for the process's end, which gone tells, or for Close.
func (m *machine) watch(gone <-chan struct{}) {
	defer close(m.watched)
	select {
	case <-gone:
	case <-m.held.Done():
		return
	}
	// The connections end with the process; what it still said is read first.
	<-m.monitor.Done()
	<-m.console.Done()
	// Its directory may be gone, and whoever removes that removes these.
	_ = clear(m.record.Dir)
	m.release()
	m.mu.Lock()
	m.exit = m.explain()
	m.mu.Unlock()
	close(m.done)
}

// poweredOff is the reason given for an end that the guest's kernel has asked for.
const poweredOff = "powered off by the guest"

// explain says how the process ended. m.mu is held.
func (m *machine) explain() hypervisor.Exit {
	e := hypervisor.Exit{At: time.Now()}
	var status syscall.WaitStatus
	if m.child != nil {
		status, _ = m.child.State().Sys().(syscall.WaitStatus)
	}
	switch {
	case m.shutdown.Reason == "guest-shutdown":
		e.Reason, e.Clean = poweredOff, true
	case m.shutdown.Reason == "guest-reset":
		e.Reason, e.Clean = "restarted by the guest, or by a panic of its kernel", true
	case m.shutdown.Reason == "guest-panic":
		e.Reason = "the guest's kernel panicked"
	case m.killed:
		e.Reason = "killed on request"
	case m.shutdown.Reason == "host-signal":
		e.Reason = "QEMU was told to end by a signal"
	case status.Signaled():
		e.Reason = fmt.Sprintf("QEMU was killed by signal %d (%v)", status.Signal(), status.Signal())
	default:
		e.Reason = "QEMU ended unexpectedly"
		if words := lastWords(m.record.Dir); words != "" {
			e.Reason = "QEMU failed: " + words
		}
	}
	if !e.Clean && m.ioError != "" {
		e.Reason += "; before that a disk failed: " + m.ioError
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

// Channel connects to the guest's port; see [hypervisor.Machine].
func (m *machine) Channel(ctx context.Context) (net.Conn, error) {
	return m.line.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx, m.record.Dir, channelSocket)
		if err != nil {
			return nil, fmt.Errorf("connect the channel of machine %s: %w", m.record.VMID, err)
		}
		return conn, nil
	})
}

func (m *machine) gone() error {
	return errs.New(errs.Unavailable, "machine %s is not running any more", m.record.VMID).Because(errors.New(m.Exit().Reason))
}

// Pause stops the virtual CPUs.
func (m *machine) Pause(ctx context.Context) error { return m.command(ctx, "stop") }

// Resume lets the virtual CPUs run on.
func (m *machine) Resume(ctx context.Context) error { return m.command(ctx, "cont") }

func (m *machine) command(ctx context.Context, name string) error {
	if err := m.monitor.Execute(ctx, name, nil, nil); err != nil {
		return fmt.Errorf("machine %s: %w", m.record.VMID, err)
	}
	return nil
}

// Forward opens or closes a port; see [hypervisor.Machine]. QEMU has this for people only:
// what it says is a sentence, and nothing at all when a port was opened.
func (m *machine) Forward(ctx context.Context, f hypervisor.Forward, open bool) error {
	line := fmt.Sprintf("hostfwd_add %s %s:%s:%d-:%d", netdev(0), f.Protocol, f.Host.Addr(), f.Host.Port(), f.Guest)
	if !open {
		line = fmt.Sprintf("hostfwd_remove %s %s:%s:%d", netdev(0), f.Protocol, f.Host.Addr(), f.Host.Port())
	}
	var said string
	if err := m.monitor.Execute(ctx, "human-monitor-command", map[string]any{"command-line": line}, &said); err != nil {
		return fmt.Errorf("machine %s: %w", m.record.VMID, err)
	}
	said = strings.TrimSpace(said)
	if open && said == "" || !open && strings.HasSuffix(said, "removed") {
		return nil
	}
	if !open && strings.HasSuffix(said, "not found") {
		return nil
	}
	return errs.New(errs.Unavailable, "QEMU can't forward %s port %s", f.Protocol, f.Host).Because(errors.New(said))
}

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
	m.monitor.Close()
	m.console.Close()
	<-m.watched
	m.release()
	return nil
}
