package vm_test

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"time"

	"banger/internal/guest/proto"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/vm"
)

type machine struct {
	w     *world
	rec   hypervisor.Record
	done  chan struct{}
	halts chan string
	exit  hypervisor.Exit

	memory   int64
	from     *hypervisor.Saved
	spec     hypervisor.MachineSpec
	paused   bool
	forwards map[hypervisor.Forward]bool
}

func (m *machine) setPaused(paused bool) error {
	if err := m.w.failing("pause"); err != nil {
		return err
	}
	m.w.set(func() { m.paused = paused })
	return nil
}

// end is the end of the machine's process, whoever brings it about.
func (m *machine) end(reason string, clean bool) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.w.machines[m.rec.Dir] == m {
		delete(m.w.machines, m.rec.Dir)
		m.exit = hypervisor.Exit{Reason: reason, Clean: clean}
		close(m.done)
	}
}

func (m *machine) Report(context.Context) hypervisor.Report { return m.w.report }

func (m *machine) Complaint() string { return m.w.complaint }

func (m *machine) Usage() (host.Usage, error) {
	return host.Usage{CPU: time.Second, PSSBytes: 1 << 20}, nil
}
func (m *machine) Halts() <-chan string         { return m.halts }
func (m *machine) Record() hypervisor.Record    { return m.rec }
func (m *machine) Console() hypervisor.Console  { return nil }
func (m *machine) Pause(context.Context) error  { return m.setPaused(true) }
func (m *machine) Resume(context.Context) error { return m.setPaused(false) }
func (m *machine) Kill(context.Context) error   { m.end("killed", true); return nil }
func (m *machine) Done() <-chan struct{}        { return m.done }
func (m *machine) Exit() hypervisor.Exit        { return m.exit }
func (m *machine) Close() error                 { return nil }

// Save writes a memory that is as long as this machine's, and a state that names it.
func (m *machine) Save(_ context.Context, memory, state *os.File) error {
	if err := m.w.failing("save"); err != nil {
		return err
	}
	if err := memory.Truncate(m.memory); err != nil {
		return err
	}
	if _, err := state.WriteString("state of " + m.rec.VMID); err != nil {
		return err
	}
	return m.setPaused(true)
}

func (m *machine) Channel(context.Context) (net.Conn, error) {
	if err := m.w.failing("channel"); err != nil {
		return nil, err
	}
	a, _ := net.Pipe()
	return conn{a, m}, nil
}

type conn struct {
	net.Conn
	m *machine
}

func (w *world) connect(ctx context.Context, dial func(context.Context) (net.Conn, error)) (vm.Guest, error) {
	c, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	silent := w.silent
	w.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &fakeGuest{c.(conn).m, make(chan struct{})}, nil
}

type fakeGuest struct {
	m    *machine
	done chan struct{}
}

func (g *fakeGuest) Call(ctx context.Context, method string, params, result any) error {
	if err := g.m.w.failing(method); err != nil {
		return err
	}
	w := g.m.w
	switch method {
	case proto.MethodConfigure:
		w.set(func() { w.lastConf = params.(proto.Configure) })
		if answer, ok := result.(*proto.Configured); ok {
			*answer = proto.Configured{UnixNanos: time.Now().UnixNano()}
		}
	case proto.MethodWaitBoot:
		raw, err := json.Marshal(proto.Boot{State: w.boot})
		if err != nil {
			return err
		}
		return json.Unmarshal(raw, result)
	case proto.MethodClock:
		*result.(*proto.Clock) = proto.Clock{UnixNanos: time.Now().UnixNano()}
	case proto.MethodFreeze:
		w.set(func() { w.froze++ })
	case proto.MethodStats:
		*result.(*proto.Stats) = proto.Stats{Load1: 0.5}
	case proto.MethodShutdown:
		w.mu.Lock()
		deaf := w.ignores || g.m.paused
		w.mu.Unlock()
		if !deaf {
			g.m.end("powered off by the guest", true)
		}
	}
	return nil
}

func (g *fakeGuest) Join(context.Context, proto.Header, *net.UnixConn) error { return nil }
func (g *fakeGuest) Streams() int                                            { return g.m.w.streams }
func (g *fakeGuest) Done() <-chan struct{}                                   { return g.done }
func (g *fakeGuest) Close() error                                            { return nil }
