package firecracker

import (
	"context"
	"fmt"
	"net"
	"time"

	"banger/internal/errs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/console"
)

// machine is one Firecracker process, launched or adopted.
type machine struct {
	*hypervisor.Life
	api     *apiClient
	has     features
	console *console.Console
	log     *drain
	meter   *meter
	knocker *knocker
}

var _ hypervisor.Machine = (*machine)(nil)

func newMachine(rec hypervisor.Record) *machine {
	return &machine{Life: hypervisor.NewLife(rec), api: newClient(func(ctx context.Context) (net.Conn, error) { return dial(ctx, rec.Dir, apiSocket) })}
}

// open opens what Firecracker is heard by: console, log and the guest's knock.
func (m *machine) open(note string) error {
	port, err := openSerial(m.Record().Dir)
	if err != nil {
		return err
	}
	if m.console, err = console.Open(port, m.Record().Dir, note); err != nil {
		return fmt.Errorf("open the console of machine %s: %w", m.Record().VMID, err)
	}
	if m.log, err = openDrain(m.Record().Dir); err != nil {
		return fmt.Errorf("open the log of machine %s: %w", m.Record().VMID, err)
	}
	if m.meter, err = openMeter(m.Record().Dir); err != nil {
		return fmt.Errorf("open the metrics of machine %s: %w", m.Record().VMID, err)
	}
	if m.knocker, err = openKnocker(m.Record().Dir); err != nil {
		return fmt.Errorf("listen for the guest of machine %s: %w", m.Record().VMID, err)
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
	if m.meter != nil {
		m.meter.close()
	}
	if m.knocker != nil {
		m.knocker.close()
	}
}

// bury sees to what is left of a process that has ended.
func (m *machine) bury(e hypervisor.Ending) hypervisor.Exit {
	// The pipes end with the process; what is in them is read first.
	<-m.console.Done()
	<-m.log.done
	m.hangUp()
	// Its directory may be gone, and whoever removes that removes these.
	_ = clear(m.Record().Dir)
	return m.explain(e)
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

// explain says how the process ended.
func (m *machine) explain(of hypervisor.Ending) hypervisor.Exit {
	e := hypervisor.Exit{At: time.Now()}
	code, known := loggedExit(m.Record().Dir)
	if of.Known {
		code, known = of.Status.ExitStatus(), of.Status.Exited()
	}
	words := lastWords(m.Record().Dir)
	switch {
	case known && code == 0:
		// It has one way out, so this is all that can be told.
		e.Reason, e.Clean = "powered off or restarted by the guest, or by a panic of its kernel", true
	case of.Killed:
		e.Reason = "killed on request"
	case of.Status.Signaled():
		e.Reason = fmt.Sprintf("Firecracker was killed by signal %d (%v)", of.Status.Signal(), of.Status.Signal())
	case known && ends[code] != "":
		e.Reason = "Firecracker failed: " + ends[code]
	case known && words != "": // else they may be of long ago
		e.Reason = "Firecracker failed: " + words
	default:
		e.Reason = "Firecracker ended unexpectedly"
	}
	return e
}

func (m *machine) Console() hypervisor.Console { return m.console }

// Halts never tells anything: Firecracker reports a write that fails to the guest.
func (m *machine) Halts() <-chan string { return nil }

// Forward implements [hypervisor.Machine]: no NIC of Firecracker's has the mode user.
func (m *machine) Forward(context.Context, hypervisor.Forward, bool) error {
	return errs.New(errs.Invalid, "Firecracker forwards no ports")
}

// Channel connects to the guest's agent once that is there; see [hypervisor.Machine].
func (m *machine) Channel(ctx context.Context) (net.Conn, error) {
	return m.Line.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		for {
			// The first connection waits for the guest to say that it is there; so does one
			// that has failed, for then it is not.
			select {
			case <-m.knocker.heard:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			if conn, err := connectGuest(ctx, m.Record().Dir); err == nil {
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
		return fmt.Errorf("machine %s: %w", m.Record().VMID, err)
	}
	return nil
}

// Close lets go of the machine; see [hypervisor.Machine].
func (m *machine) Close() error {
	m.LetGo(m.hangUp)
	return nil
}
