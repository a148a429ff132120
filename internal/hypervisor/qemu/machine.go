package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"banger/internal/errs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/console"
)

// machine is one QEMU process, launched or adopted.
type machine struct {
	*hypervisor.Life
	console *console.Console
	monitor *monitor
	halts   chan string // why the CPUs have stopped; holds the last reason nobody has read

	migrating sync.Mutex  // held while state is saved or loaded
	migration chan string // news of that: what QEMU calls its status

	mu       sync.Mutex
	shutdown shutdownEvent
	ioError  string // of the last BLOCK_IO_ERROR
}

var _ hypervisor.Machine = (*machine)(nil)

func newMachine(rec hypervisor.Record) *machine {
	return &machine{Life: hypervisor.NewLife(rec), halts: make(chan string, 1), migration: make(chan string, 8)}
}

func (m *machine) dialMonitor(ctx context.Context) (*monitor, error) {
	conn, err := dial(ctx, m.Record().Dir, monitorSocket)
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

// bury sees to what is left of a process that has ended.
func (m *machine) bury(e hypervisor.Ending) hypervisor.Exit {
	// The connections end with the process; what it still said is read first.
	<-m.monitor.Done()
	<-m.console.Done()
	// Its directory may be gone, and whoever removes that removes these.
	_ = clear(m.Record().Dir)
	return m.explain(e)
}

// poweredOff is the reason given for an end that the guest's kernel has asked for.
const poweredOff = "powered off by the guest"

// explain says how the process ended.
func (m *machine) explain(of hypervisor.Ending) hypervisor.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := hypervisor.Exit{At: time.Now()}
	switch {
	case m.shutdown.Reason == "guest-shutdown":
		e.Reason, e.Clean = poweredOff, true
	case m.shutdown.Reason == "guest-reset":
		e.Reason, e.Clean = "restarted by the guest, or by a panic of its kernel", true
	case m.shutdown.Reason == "guest-panic":
		e.Reason = "the guest's kernel panicked"
	case of.Killed:
		e.Reason = "killed on request"
	case m.shutdown.Reason == "host-signal":
		e.Reason = "QEMU was told to end by a signal"
	case of.Status.Signaled():
		e.Reason = fmt.Sprintf("QEMU was killed by signal %d (%v)", of.Status.Signal(), of.Status.Signal())
	default:
		e.Reason = "QEMU ended unexpectedly"
		if words := lastWords(m.Record().Dir); words != "" {
			e.Reason = "QEMU failed: " + words
		}
	}
	if !e.Clean && m.ioError != "" {
		e.Reason += "; before that a disk failed: " + m.ioError
	}
	return e
}

func (m *machine) Console() hypervisor.Console { return m.console }

// Channel connects to the guest's port; see [hypervisor.Machine].
func (m *machine) Channel(ctx context.Context) (net.Conn, error) {
	return m.Line.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx, m.Record().Dir, channelSocket)
		if err != nil {
			return nil, fmt.Errorf("connect the channel of machine %s: %w", m.Record().VMID, err)
		}
		return conn, nil
	})
}

// Report implements [hypervisor.Machine]: QEMU has no balloon here.
func (m *machine) Report(context.Context) hypervisor.Report { return hypervisor.Report{} }

// Complaint implements [hypervisor.Machine]: what QEMU has to say it stops for.
func (m *machine) Complaint() string { return "" }

// Pause stops the virtual CPUs.
func (m *machine) Pause(ctx context.Context) error { return m.command(ctx, "stop") }

// Resume lets the virtual CPUs run on.
func (m *machine) Resume(ctx context.Context) error { return m.command(ctx, "cont") }

func (m *machine) command(ctx context.Context, name string) error {
	if err := m.monitor.Execute(ctx, name, nil, nil); err != nil {
		return fmt.Errorf("machine %s: %w", m.Record().VMID, err)
	}
	return nil
}

// privilegedPorts are those below.
const privilegedPorts = 1024

// Forward opens or closes a port; see [hypervisor.Machine]. QEMU has this for people only:
// what it says is a sentence, and nothing at all when a port was opened.
func (m *machine) Forward(ctx context.Context, f hypervisor.Forward, open bool) error {
	line := fmt.Sprintf("hostfwd_add %s %s:%s:%d-:%d", netdev(0), f.Protocol, f.Host.Addr(), f.Host.Port(), f.Guest)
	if !open {
		line = fmt.Sprintf("hostfwd_remove %s %s:%s:%d", netdev(0), f.Protocol, f.Host.Addr(), f.Host.Port())
	}
	var said string
	if err := m.monitor.Execute(ctx, "human-monitor-command", map[string]any{"command-line": line}, &said); err != nil {
		return fmt.Errorf("machine %s: %w", m.Record().VMID, err)
	}
	said = strings.TrimSpace(said)
	if open && said == "" || !open && strings.HasSuffix(said, "removed") {
		return nil
	}
	if !open && strings.HasSuffix(said, "not found") {
		return nil
	}
	refused := errs.New(errs.Unavailable, "QEMU can't forward %s port %s", f.Protocol, f.Host).Because(errors.New(said))
	if f.Host.Port() < privilegedPorts {
		return refused.Try("choose a port from %d on, for a confined QEMU has no right to those below; on the bridge (--net bridge) the daemon listens", privilegedPorts)
	}
	return refused
}

// Close lets go of the machine; see [hypervisor.Machine].
func (m *machine) Close() error {
	m.LetGo(func() {
		m.monitor.Close()
		m.console.Close()
	})
	return nil
}
