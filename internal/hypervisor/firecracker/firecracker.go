// Package firecracker owns machines run by Firecracker: its API, its pipes and sockets, and
// how it is found again. It knows no VM as users see them and nothing of what is said on the
// control channel.
package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/console"
	"banger/internal/jail"
	"banger/internal/undo"
)

// DefaultBinary is the name that Firecracker has where it is installed.
const DefaultBinary = "firecracker"

// Hypervisor runs machines with Firecracker.
type Hypervisor struct {
	program func() string
	options Options

	asking sync.Mutex // guards known
	known  known
}

// New returns a hypervisor that runs the program that find names each time: by a path, or by a
// name to be looked up.
func New(find func() string, o Options) *Hypervisor { return &Hypervisor{program: find, options: o} }

var _ hypervisor.Hypervisor = (*Hypervisor)(nil)

// Launch starts a machine; see [hypervisor.Hypervisor]. errs.Invalid: the spec can't be
// had; errs.Unavailable: Firecracker or a file is not there, it is too old, or it refused,
// with its own words.
func (h *Hypervisor) Launch(ctx context.Context, spec hypervisor.MachineSpec) (_ hypervisor.Machine, err error) {
	if err := check(spec); err != nil {
		return nil, err
	}
	own, err := h.options.tuning()
	if err != nil {
		return nil, err
	}
	var u undo.Stack
	defer func() { err = errors.Join(err, u.Rollback(ctx)) }()

	u.Push("sockets of machine "+spec.VMID, func(context.Context) error { return clear(spec.Dir) })
	// What an earlier machine has left: Firecracker takes no other socket's place.
	if err := errors.Join(clear(spec.Dir), forgetLog(spec.Dir), makeNames(spec)); err != nil {
		return nil, err
	}
	pipes, err := makePipes(spec.Dir)
	defer pipes.close()
	if err != nil {
		return nil, fmt.Errorf("make the pipes of machine %s: %w", spec.VMID, err)
	}
	m := newMachine(hypervisor.Record{Dir: spec.Dir, VMID: spec.VMID, Accel: spec.Accel, Backend: hypervisor.Firecracker})
	u.Push("connections of machine "+spec.VMID, func(context.Context) error { m.hangUp(); return nil })
	// Opened before Firecracker runs, they miss nothing.
	if err := m.open(console.StartNote); err != nil {
		return nil, err
	}
	child, err := h.start(spec, pipes)
	if err != nil {
		return nil, err
	}
	u.Push("process of machine "+spec.VMID, func(ctx context.Context) error { return child.End(ctx) })
	pipes.close() // from now on only Firecracker has them: when it dies, they end
	if err := m.configure(ctx, spec, own, child); err != nil {
		return nil, launchError(ctx, spec, child, m, err)
	}
	u.Disarm()
	m.Launched(child, m.bury)
	return m, nil
}

// start runs Firecracker in a session of its own. It works in the machine's directory, and
// knows the sockets and pipes there by names that are as right in a copy of that.
func (h *Hypervisor) start(spec hypervisor.MachineSpec, p pipes) (*host.Child, error) {
	d := host.Detached{
		Path: h.program(),
		Args: []string{"--id", machineName(spec.VMID), "--api-sock", apiSocket, "--log-path", logPipe, "--level", "Info", "--show-level", "--metrics-path", metricsPipe},
		Env:  []string{"LC_ALL=C"}, Dir: spec.Dir,
		Stdin: p.in, Stdout: p.out, Log: p.log,
		Files: []*os.File{p.metrics}, // so that it can write there while no daemon reads
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

// machineName is what a machine answers when its API is asked for its id.
func machineName(vmID string) string { return "banger-" + vmID }

// configure describes the machine to a Firecracker that has just been started, and starts it, or
// has it go on from one that was saved.
func (m *machine) configure(ctx context.Context, spec hypervisor.MachineSpec, own tuning, child *host.Child) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // one that has died says nothing more
		select {
		case <-child.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := awaitAPI(ctx, spec.Dir); err != nil {
		return err
	}
	if err := m.greet(ctx); err != nil {
		return err
	}
	if spec.HugePages && !m.has.hugePages {
		return errNoHugePages()
	}
	calls := configuration(spec, m.has, own)
	if spec.From != nil {
		if !m.has.saves {
			return errNotSaved()
		}
		calls = []call{loading(spec)}
	}
	for _, c := range calls {
		if err := m.api.do(ctx, c, nil); err != nil {
			return err
		}
	}
	if err := seal(spec.Dir); err != nil {
		return err
	}
	if spec.From != nil {
		return nil
	}
	return m.api.do(ctx, put("/actions", action{"InstanceStart"}), nil)
}

// makeNames makes what the machine knows by names in its directory, but for its pipes: the place
// for its sockets, and there links to its disks.
func makeNames(spec hypervisor.MachineSpec) error {
	if err := os.Mkdir(filepath.Join(spec.Dir, socketDir), 0o700); err != nil {
		return err
	}
	for i, d := range spec.Disks {
		if err := os.Symlink(d.Path, filepath.Join(spec.Dir, diskLink(i))); err != nil {
			return err
		}
	}
	return nil
}

// greet asks Firecracker who it is.
func (m *machine) greet(ctx context.Context) error {
	i, err := m.api.instance(ctx)
	if err != nil {
		return err
	}
	if i.ID != machineName(m.Record().VMID) {
		return errs.New(errs.Conflict, "the socket of machine %s in %s is answered by %q", m.Record().VMID, m.Record().Dir, printable(i.ID))
	}
	v, err := parseVersion(i.Version)
	if err != nil {
		return err
	}
	m.has, err = featuresOf(v)
	return err
}

// launchError says why Firecracker did not start a machine.
func launchError(ctx context.Context, spec hypervisor.MachineSpec, child *host.Child, m *machine, err error) error {
	log := filepath.Join(spec.Dir, logFile)
	if ctx.Err() != nil {
		return errs.New(errs.Unavailable, "Firecracker did not start machine %s in time", spec.VMID).Because(errors.Join(ctx.Err(), err)).
			Try("see %s", log)
	}
	if no, ok := errors.AsType[*refusal](err); ok {
		return errs.New(errs.Unavailable, "Firecracker refused machine %s", spec.VMID).Because(no).Try("see %s", log)
	}
	select {
	case <-child.Done():
	default:
		return err
	}
	<-m.log.done
	words := lastWords(spec.Dir)
	if words == "" {
		words = fmt.Sprint(child.State())
	}
	return errs.New(errs.Unavailable, "Firecracker gave up starting machine %s", spec.VMID).Because(errors.New(words)).
		Try("see %s", log)
}

// Adopt takes charge of a running machine; see [hypervisor.Hypervisor].
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
	u.Push("connections of machine "+rec.VMID, func(context.Context) error { m.hangUp(); return nil })
	// The process is proven to be the one we started; that it is at the other end of this
	// socket is not, until it says so.
	if err := m.greet(ctx); err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", rec.VMID, err)
	}
	if err := m.open(console.GapNote); err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", rec.VMID, err)
	}
	for _, name := range []string{savedMemory, savedState} { // of a daemon that died while it saved
		if err := removeIfThere(m.path(name)); err != nil {
			return nil, fmt.Errorf("adopt machine %s: %w", rec.VMID, err)
		}
	}
	m.knocked() // perhaps while nobody listened: it is worth a try
	u.Disarm()
	m.Adopted(handle, m.bury)
	return m, nil
}

// clear takes away what is left of a machine that is gone beside its logs.
func clear(dir string) error {
	failed := []error{os.RemoveAll(filepath.Join(dir, socketDir)), jail.RemoveGroup(dir)}
	for _, name := range []string{consoleInPipe, consoleOutPipe, logPipe, metricsPipe} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, unix.ENOENT) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
