package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"banger/internal/errs"
	"banger/internal/guest/proto"
	"banger/internal/hypervisor"
	"banger/internal/kernel"
	"banger/internal/op"
	"banger/internal/template"
	"banger/internal/undo"
)

// Wait says when a start is done.
type Wait string

const (
	WaitBoot  Wait = "boot"  // when the image's init has finished its start
	WaitAgent Wait = "agent" // when the guest answers
)

func (w Wait) check() error {
	switch w {
	case "", WaitBoot, WaitAgent:
		return nil
	}
	return errs.New(errs.Invalid, "there is nothing called %q to wait for", string(w)).Try("use boot or agent")
}

const (
	// readyLimit bounds the time from launch until the guest answers: 2 s for a small
	// guest translated in software on an idle host, some ten times that on a busy one.
	readyLimit = 120 * time.Second

	// endGrace is how long after its connections a dying machine may end.
	endGrace = 2 * time.Second

	// bootLimit bounds the time that an image's init may take to finish its start after
	// that. A slow or broken unit makes a start late, never failed.
	bootLimit = 180 * time.Second
)

// Start starts a stopped or failed VM: every host object of it is made afresh.
func (m *Manager) Start(ctx context.Context, o *op.Operation, id string, wait Wait, boot Boot) (VM, error) {
	begin := time.Now()
	if err := errors.Join(wait.check(), boot.check()); err != nil {
		return VM{}, err
	}
	v, unlock, err := m.lock(ctx, id, "started")
	if err != nil {
		return VM{}, err
	}
	defer unlock()
	return m.start(ctx, o, v, begin, wait, boot)
}

// start is Start with v's lock held.
func (m *Manager) start(ctx context.Context, o *op.Operation, v VM, begin time.Time, wait Wait, boot Boot) (VM, error) {
	if v.State == Suspended {
		return m.wake(ctx, o, v, begin, boot)
	}
	if v.State != Stopped && v.State != Failed {
		return v, errs.New(errs.Conflict, "VM %s is %s already", v.Name, v.State)
	}
	if boot == Warm && !v.Pristine {
		return v, errs.New(errs.Conflict, "VM %s can't be started warm: its disk is not that of a template", v.Name).
			Try("leave --warm out")
	}
	if err := m.removeMachine(ctx, v); err != nil { // stale remains of an earlier life
		return v, err
	}
	if err := m.checkSpace(o, v); err != nil {
		return v, err
	}
	was := v
	v, err := m.update(ctx, v.ID, "start", func(*VM) error { return nil }, starting(v)...)
	if err == nil {
		v, err = m.bootOrFallBack(ctx, o, v, begin, wait, boot)
	}
	if err == nil {
		return v, nil
	}
	if _, left := errors.AsType[leftBehind](err); left || keepForReading(err) || was.State == Failed {
		m.markFailed(ctx, was.ID, err)
		return was, err
	}
	return was, errors.Join(err, m.neverStarted(ctx, was))
}

// neverStarted records that nothing has come of a start: the VM is what it was. A
// transaction that reports an error may have taken effect.
func (m *Manager) neverStarted(ctx context.Context, was VM) error {
	_, err := m.update(context.WithoutCancel(ctx), was.ID, "its start failed", func(x *VM) error {
		x.StartedAt, x.StartTook, x.StartKind = was.StartedAt, was.StartTook, was.StartKind
		return x.To(was.State, was.Reason)
	}, Change{KindAttached, Gone}, Change{KindMachine, Gone}, Change{KindNetwork, Gone})
	return err
}

// leftBehind is a start that failed and whose machine could not be removed.
type leftBehind struct{ error }

func (e leftBehind) Unwrap() error { return e.error }

// neverReady is a guest that ran without ever answering. Its console may tell why.
type neverReady struct{ error }

func (e neverReady) Unwrap() error { return e.error }

func keepForReading(err error) bool {
	_, ok := errors.AsType[neverReady](err)
	return ok
}

// starting is what a start is about to make.
func starting(v VM) []Change {
	all := []Change{{KindAttached, Pending}, {KindMachine, Pending}}
	if v.Spec.Net == NetBridge {
		all = append(all, Change{KindNetwork, Pending})
	}
	return all
}

// origin is what a machine goes on from instead of booting.
type origin struct {
	saved *hypervisor.Saved
	of    *template.Template // another machine, whose identity the guest has; nil: its own
	ready bool               // nothing is loaded: it was kept ready, and is somebody's from now on
}

func fromTemplate(t template.Template) *origin { return &origin{saved: t.Saved(), of: &t} }

// own tells whether it is the VM's own machine, kept when it was suspended.
func (from *origin) own() bool { return from != nil && from.of == nil && !from.ready }

func isDone(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// boot launches v's machine and brings it to running: from its beginning, or from an origin.
// The rows of [starting] are there. If it fails nothing of the machine is left but its logs.
func (m *Manager) boot(ctx context.Context, o *op.Operation, v VM, begin time.Time, wait Wait, from *origin) (_ VM, err error) {
	var u undo.Stack
	defer func() {
		if undone := u.Rollback(ctx); undone != nil {
			err = leftBehind{errors.Join(err, undone)}
		}
	}()
	u.Push("machine of VM "+v.ID, func(ctx context.Context) error { return m.removeMachine(ctx, v) })
	spec, hardware, err := m.machineSpec(ctx, v)
	if err != nil {
		return v, err
	}
	if spec.NICs, err = m.connect(ctx, o, &v); err != nil {
		return v, err
	}
	o.Stage("starting the machine", 0, 0)
	if from != nil {
		spec.From = from.saved
	}
	machine, err := m.Hypervisor.Launch(ctx, spec)
	if err != nil {
		return v, warmFailed(from, err)
	}
	rec := machine.Record()
	v.Machine = &rec // what the undo above needs to find it
	r := &running{machine: machine, connect: m.Connect, reconnect: m.Reconnect}
	u.Push("connection to VM "+v.ID, func(context.Context) error { return r.close() })
	if err := forwardAll(ctx, v, machine); err != nil { // before the row gives up what is kept
		return v, err
	}
	launched := starting(v)
	for i := range launched {
		launched[i].Status = Live
	}
	if _, err = m.update(ctx, v.ID, "launched", func(x *VM) error {
		x.Machine, x.Hardware, x.Pristine = &rec, hardware, false
		x.leaveSnapshot()
		x.Suspended = false // its disk is about to change, and then what is kept is worth nothing
		return nil
	}, append(launched, Change{KindDisk, Live}, Change{KindDirectory, Live})...); err != nil {
		return v, err
	}

	o.Stage("waiting for the guest", 0, 0)
	if from != nil {
		if err := machine.Resume(ctx); err != nil {
			return v, warmFailed(from, err)
		}
	}
	silent := ""
	if err := m.ready(ctx, v, r, from); err != nil {
		if !from.own() || isDone(machine.Done()) {
			return v, warmFailed(from, m.withConsole(v, err))
		}
		silent = "its guest has not answered since it was resumed" // and is not killed for that
		o.Warn(fmt.Sprintf("VM %s: %s: %v", v.Name, silent, err))
	}
	took := time.Since(begin)
	if wait != WaitAgent && from == nil { // what was saved had finished its start
		o.Stage("waiting for the guest's init", 0, 0)
		if note, err := m.initDone(ctx, r); err != nil {
			return v, m.withConsole(v, err)
		} else if note != "" {
			o.Warn(fmt.Sprintf("VM %s: %s", v.Name, note))
		}
		took = time.Since(begin)
	}
	started, err := m.update(ctx, v.ID, "started", func(x *VM) error {
		x.StartedAt, x.StartTook, x.StartKind = time.Now().UTC(), took, kindOf(from)
		return x.To(Running, silent)
	})
	if err != nil {
		return v, err // v as it is: the undo needs it
	}
	u.Disarm()
	m.watch(v.ID, r)
	return started, nil
}

// ready returns once the guest has answered and has its identity.
func (m *Manager) ready(ctx context.Context, v VM, r *running, from *origin) error {
	limit := readyLimit
	if from != nil && !from.own() { // what could boot instead
		limit = warmLimit
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var halted string
	watched := make(chan struct{})
	go func() { // a machine that ends or halts will never answer
		defer close(watched)
		defer cancel()
		select {
		case <-r.machine.Done():
		case halted = <-r.machine.Halts():
		case <-limited.Done():
		}
	}()
	g, err := r.channel(limited)
	if err == nil {
		err = m.configure(limited, v, g, from)
	}
	if err == nil {
		cancel()
		<-watched
		return haltedEarly(v, halted)
	}
	select { // a connection that broke was perhaps the first sign of the machine's end
	case <-r.machine.Done():
		return neverReady{errs.New(errs.Internal, "the machine of VM %s ended before its guest answered", v.Name).
			Because(errors.New(r.machine.Exit().Reason))}
	case <-limited.Done():
	case <-time.After(endGrace):
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(limited.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v", limit)
	}
	cancel()
	<-watched
	if err := haltedEarly(v, halted); err != nil {
		return err
	}
	return neverReady{errs.New(errs.Unavailable, "the guest of VM %s never became ready", v.Name).Because(err)}
}

// haltedEarly is the error of a guest whose machine has halted for this reason, if any, before
// it was ready. It stays as it is no more than other guests that are not.
func haltedEarly(v VM, why string) error {
	if why == "" {
		return nil
	}
	return neverReady{errs.New(errs.Unavailable, "a write to the disk of VM %s failed while it was starting: %s", v.Name, why).
		Try("make room on the host, then: banger start %s", v.Name)}
}

// initDone waits for the image's init to finish its start. It returns a note if that did
// not go well; an error only if the machine or ctx ended.
func (m *Manager) initDone(ctx context.Context, r *running) (note string, err error) {
	limited, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	g, err := r.channel(limited)
	var boot proto.Boot
	if err == nil {
		err = g.Call(limited, proto.MethodWaitBoot, nil, &boot)
	}
	select {
	case <-r.machine.Done():
		return "", neverReady{errs.New(errs.Internal, "the machine ended while its init was starting").
			Because(errors.New(r.machine.Exit().Reason))}
	default:
	}
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case errors.Is(limited.Err(), context.DeadlineExceeded):
		return fmt.Sprintf("its init has not finished starting after %v", bootLimit), nil
	case err != nil:
		return "can't tell how its init started: " + err.Error(), nil
	case boot.State != "running":
		return fmt.Sprintf("its init started %s; some of its units failed", boot.State), nil
	}
	return "", nil
}

// machineSpec describes the machine of v, with the key of what it is, and attaches its disk.
func (m *Manager) machineSpec(ctx context.Context, v VM) (spec hypervisor.MachineSpec, hardware string, err error) {
	k, err := m.Kernels.Kernel(v.Spec.Kernel)
	if err != nil {
		return spec, "", err
	}
	if spec, err = m.specNow(ctx, v, k); err != nil {
		return spec, "", err
	}
	if hardware, err = m.hardwareOf(spec, k); err != nil {
		m.Log.Info("a VM's machine can't be kept", "vm", v.ID, "err", err)
	}
	spec.Disks[0], err = m.attachDisk(ctx, v)
	spec.Disks[0].Limit = v.Spec.DiskLimit
	return spec, hardware, err
}

// describe gives the machine of v, but for its network and what its root disk is.
func (m *Manager) describe(v VM, k kernel.Kernel, initramfs string, backend hypervisor.Backend, accel hypervisor.Accel) hypervisor.MachineSpec {
	s := hypervisor.MachineSpec{
		VMID: v.ID, Dir: m.dir(v.ID), Jailed: m.jailed(v), Backend: backend, Accel: accel, Nested: v.Spec.Nested,
		CPUs: v.Spec.CPUs, MemoryBytes: v.Spec.MemoryBytes, HugePages: v.Spec.HugePages,
		Kernel: k.Vmlinux, Initramfs: initramfs,
		// Units that images with separate /home and /var disks carry, which would
		// otherwise hold up the boot for disks that are not there.
		Cmdline: []string{"banger.root=/dev/vda", "systemd.mask=home.mount", "systemd.mask=var.mount", stableNames},
		Disks:   []hypervisor.Disk{{Limit: v.Spec.DiskLimit}},
	}
	if k.ModulesImage != "" {
		s.Disks = append(s.Disks, hypervisor.Disk{Path: k.ModulesImage, Format: "raw", ReadOnly: true})
		s.Cmdline = append(s.Cmdline, "banger.modules=/dev/vdb")
	}
	return s
}

// configure gives the guest its identity, in the place of another's if it has that, and the time.
func (m *Manager) configure(ctx context.Context, v VM, g Guest, from *origin) error {
	entropy := make([]byte, 64)
	rand.Read(entropy)
	c := proto.Configure{
		VMID: v.ID, Hostname: v.Name, MachineID: v.MachineID, Env: v.Spec.Env,
		SSHHostKey: v.HostKey, AuthorizedKeys: m.AuthorizedKeys,
		UnixNanos: time.Now().UnixNano(), Entropy: entropy,
		GrowRoot: from == nil, // what was saved has grown
	}
	c.Links, c.Nameservers = m.guestNet(v)
	if from != nil && from.of != nil {
		c.Clone = &proto.Clone{BootID: newBootID(), Shed: !from.of.Snapshot}
		for i := range c.Links {
			c.Links[i].OldMAC = from.of.MAC
		}
	}
	if from != nil && from.ready { // its ids are nobody else's, and known to it by now
		c.Clone = &proto.Clone{Shed: true}
	}
	var guest proto.Configured
	begin := time.Now()
	if err := g.Call(ctx, proto.MethodConfigure, c, &guest); err != nil || from == nil {
		return err
	}
	configuring := time.Duration(guest.TookNanos)
	behind, sure := skew(begin.Add(configuring), guest.UnixNanos, time.Since(begin)-configuring)
	if sure {
		return nil
	}
	return setClock(ctx, g, behind)
}

// withConsole adds to err what the guest's console said last and where the rest is.
func (m *Manager) withConsole(v VM, err error) error {
	if !keepForReading(err) {
		return err
	}
	log, openErr := m.Hypervisor.ReadLog(m.dir(v.ID))
	if openErr != nil {
		return err
	}
	defer log.Close()
	tail := newTail(2 << 10)
	if _, readErr := io.Copy(tail, log); readErr != nil || tail.empty() {
		return err
	}
	e := errs.New(errs.KindOf(err), "%v\nits console said last:\n%s", err, tail)
	if v.Spec.Lease == "" && !v.Spec.AutoRemove {
		e = e.Try("banger logs %s shows all of it; its files are in %s", v.Name, m.dir(v.ID))
	}
	return neverReady{e}
}

// tail keeps the last bytes written to it.
type tail struct {
	max  int
	last []byte
}

func newTail(max int) *tail { return &tail{max: max} }

func (t *tail) Write(p []byte) (int, error) {
	t.last = append(t.last, p...)
	if over := len(t.last) - t.max; over > 0 {
		t.last = append(t.last[:0], t.last[over:]...)
	}
	return len(p), nil
}

func (t *tail) empty() bool { return strings.TrimSpace(t.String()) == "" }

// String gives whole lines, indented, with what could steer a terminal left out: a guest
// chooses these bytes.
func (t *tail) String() string {
	text := string(t.last)
	if len(t.last) == t.max {
		_, text, _ = strings.Cut(text, "\n")
	}
	text = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) && r != utf8.RuneError {
			return r
		}
		return -1
	}, text)
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
}
