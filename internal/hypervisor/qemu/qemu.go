// Package qemu owns machines run by QEMU: its command line, its monitor, its console and
// how it is found again. It knows no VM as users see them and nothing of what is said on
// the control channel.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/console"
	"banger/internal/undo"
)

// DefaultBinary is the QEMU that Hypervisor looks for.
const DefaultBinary = "qemu-system-x86_64"

// qemuLog is what QEMU itself writes, of the machine's last start.
const qemuLog = "qemu.log"

// Hypervisor runs machines with QEMU.
type Hypervisor struct {
	binary   string
	memories memories

	reading sync.Mutex // guards program
	program program
}

// New returns a hypervisor that runs the given program: a path or a name to be looked up.
func New(binary string) *Hypervisor { return &Hypervisor{binary: binary} }

var _ hypervisor.Hypervisor = (*Hypervisor)(nil)

// Launch starts a machine; see [hypervisor.Hypervisor]. errs.Invalid: the spec can't be
// had; errs.Unavailable: QEMU or a file is not there, or QEMU gave up at once, with its
// last words.
func (h *Hypervisor) Launch(ctx context.Context, spec hypervisor.MachineSpec) (_ hypervisor.Machine, err error) {
	if err := check(spec); err != nil {
		return nil, err
	}
	var u undo.Stack
	defer func() { err = errors.Join(err, u.Rollback(ctx)) }()

	u.Push("sockets of machine "+spec.VMID, func(context.Context) error { return clear(spec.Dir) })
	sockets, err := listenAll(spec.Dir)
	defer sockets.close()
	if err != nil {
		return nil, fmt.Errorf("make the sockets of machine %s: %w", spec.VMID, err)
	}
	m := newMachine(hypervisor.Record{Dir: spec.Dir, VMID: spec.VMID, Accel: spec.Accel})
	// Connected before QEMU runs, the console misses nothing.
	if m.console, err = openConsole(ctx, spec.Dir, console.StartNote); err != nil {
		return nil, fmt.Errorf("open the console of machine %s: %w", spec.VMID, err)
	}
	u.Push("console of machine "+spec.VMID, func(context.Context) error { m.console.Close(); return nil })

	spec, release, err := h.guardMemory(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer release()
	child, err := h.start(spec, sockets)
	if err != nil {
		return nil, err
	}
	u.Push("process of machine "+spec.VMID, func(ctx context.Context) error { return child.End(ctx) })
	// From now on only QEMU holds the sockets: when it dies, so do the connections.
	sockets.close()

	if m.monitor, err = m.dialMonitor(ctx); err != nil {
		return nil, launchError(ctx, spec, child, err)
	}
	if spec.From != nil {
		u.Push("monitor of machine "+spec.VMID, func(context.Context) error { m.monitor.Close(); return nil })
		if err := m.load(ctx, spec.From.State); err != nil {
			if words := lastWords(spec.Dir); words != "" {
				err = errors.New(words)
			}
			return nil, errs.New(errs.Unavailable, "machine %s can't go on from %s", spec.VMID, spec.From.State).Because(err)
		}
	}
	u.Disarm()
	m.Launched(child, m.bury)
	return m, nil
}

// start runs QEMU in a session of its own.
func (h *Hypervisor) start(spec hypervisor.MachineSpec, sockets sockets) (*host.Child, error) {
	log, err := os.OpenFile(filepath.Join(spec.Dir, qemuLog), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	files := slices.Clone([]*os.File(sockets))
	for _, n := range spec.NICs {
		if n.TAP != nil {
			files = append(files, n.TAP)
		}
	}
	d := host.Detached{
		Path: h.binary, Args: arguments(spec, host.SteadyTSC("/")), Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"},
		Dir: spec.Dir, Log: log, Files: files, OneCPU: unsafeSVM(spec),
	}
	if !spec.Jailed {
		return host.Detach(d)
	}
	j, err := jailOf(spec)
	if err != nil {
		return nil, err
	}
	return j.Detach(d)
}

// unsafeSVM tells of a machine whose threads must take turns on one CPU of the host, for
// otherwise TCG's SVM (QEMU 7.2) now and then loses an interrupt, or worse. Measured with
// two virtual CPUs that each made 100,000 exits from machines inside: three tries out of
// three failed (one hung, or ran an instruction twice), and a console flood there brought
// the machine's own kernel down. With one virtual CPU it still slept for minutes over a
// timer that was lost. On one CPU of the host's all went well every time. The likely cause:
// each exit clears a bit of the virtual CPU's pending interrupts, where other threads set
// bits, and not atomically; on one CPU an instruction can't be cut in two.
func unsafeSVM(spec hypervisor.MachineSpec) bool {
	return spec.Nested && spec.Accel == hypervisor.TCG
}

// launchError says why QEMU's monitor never answered.
func launchError(ctx context.Context, spec hypervisor.MachineSpec, child *host.Child, err error) error {
	if ctx.Err() != nil {
		return errs.New(errs.Unavailable, "QEMU did not start machine %s in time", spec.VMID).Because(err).
			Try("see %s", filepath.Join(spec.Dir, qemuLog))
	}
	// The connection has ended, which only QEMU's end does.
	select {
	case <-child.Done():
	case <-ctx.Done():
	}
	words := lastWords(spec.Dir)
	if words == "" {
		words = fmt.Sprint(child.State())
	}
	return errs.New(errs.Unavailable, "QEMU gave up starting machine %s", spec.VMID).Because(errors.New(words)).
		Try("see %s", filepath.Join(spec.Dir, qemuLog))
}

// Adopt takes charge of a running machine; see [hypervisor.Hypervisor]. Whether QEMU's
// earlier client has gone or not, it waits, bounded by ctx, until QEMU listens to this one.
func (h *Hypervisor) Adopt(ctx context.Context, rec hypervisor.Record) (_ hypervisor.Machine, err error) {
	var u undo.Stack
	defer func() { err = errors.Join(err, u.Rollback(ctx)) }()

	handle, err := rec.Process.Open()
	if err != nil {
		if errs.KindOf(err) == errs.NotFound {
			err = errors.Join(err, clear(rec.Dir))
		}
		return nil, err
	}
	u.Push("handle on machine "+rec.VMID, func(context.Context) error { return handle.Close() })
	m := newMachine(rec)

	if m.monitor, err = m.dialMonitor(ctx); err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", rec.VMID, err)
	}
	u.Push("monitor of machine "+rec.VMID, func(context.Context) error { m.monitor.Close(); return nil })
	// The process is proven to be the one we started; that it is at the other end of this
	// socket is not, until it says so.
	var answer struct{ Name string }
	if err := m.monitor.Execute(ctx, "query-name", nil, &answer); err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", rec.VMID, err)
	}
	if answer.Name != machineName(rec.VMID) {
		return nil, errs.New(errs.Conflict, "the socket of machine %s in %s is answered by %q", rec.VMID, rec.Dir, answer.Name)
	}
	// Who was to be told of a halt may have been away.
	var status struct{ Status string }
	if err := m.monitor.Execute(ctx, "query-status", nil, &status); err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", rec.VMID, err)
	}
	if status.Status == "io-error" {
		m.halt("a write to its disk failed")
	}
	if m.console, err = openConsole(ctx, rec.Dir, console.GapNote); err != nil {
		return nil, fmt.Errorf("open the console of machine %s: %w", rec.VMID, err)
	}
	u.Disarm()
	m.Adopted(handle, m.bury)
	return m, nil
}

// openConsole connects to the serial port of the machine in dir and starts draining it.
func openConsole(ctx context.Context, dir, note string) (*console.Console, error) {
	conn, err := dial(ctx, dir, consoleSocket)
	if err != nil {
		return nil, err
	}
	return console.Open(conn, dir, note)
}

// lastWords returns the last lines that QEMU wrote before it gave up, as one, or "". Its
// warnings, of CPU features that TCG lacks, say nothing of why.
func lastWords(dir string) string {
	f, err := os.Open(filepath.Join(dir, qemuLog))
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 2 << 10 // bytes
	if info, err := f.Stat(); err == nil {
		_, _ = f.Seek(max(0, info.Size()-most), io.SeekStart)
	}
	b, _ := io.ReadAll(io.LimitReader(f, most))
	lines := strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' || r == '\r' })
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, ": warning: ") })
	lines = lines[max(0, len(lines)-3):]
	for i, line := range lines {
		lines[i] = strings.TrimPrefix(line, DefaultBinary+": ")
	}
	return strings.Join(lines, "; ")
}
