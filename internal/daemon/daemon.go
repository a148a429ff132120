// Package daemon is the only wiring of bangerd: it opens the state directory, puts the
// managers together, recovers what the last daemon left, and serves. It decides nothing.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/config"
	"banger/internal/errs"
	"banger/internal/guest"
	"banger/internal/host"
	"banger/internal/jail"
	"banger/internal/network"
	"banger/internal/op"
	"banger/internal/server"
	"banger/internal/store"
	"banger/internal/template"
	"banger/internal/vm"
	"banger/internal/vmdir"
)

// Options say how a daemon is to run.
type Options struct {
	Config     config.Config
	Executable string // of this program: the install layout is found beside it
	Checkout   string // root of the checkout that it was built in, or empty
	Version    string
	Log        *slog.Logger
}

// Daemon is an open daemon: it owns its state directory.
type Daemon struct {
	opts      Options
	lock      *os.File
	store     *store.Store
	vms       *vm.Manager
	network   *network.Bridge
	library   *library
	names     *names
	vmm       *vmm
	jails     jailTry
	ops       *op.Registry
	identity  identity
	notes     []string // what whoever started this daemon should know
	cancel    context.CancelFunc
	startedAt time.Time
	stopOnce  sync.Once
	stopping  chan struct{}
	swept     func() // waits until what an earlier daemon left half made is gone
}

// Open takes the state directory and recovers every VM in it. errs.Busy if another daemon
// has it.
func Open(ctx context.Context, opts Options) (_ *Daemon, err error) {
	state := opts.Config.StateDir
	if err := os.MkdirAll(filepath.Join(state, "cache"), 0o700); err != nil {
		return nil, errs.New(errs.Unavailable, "make the state directory").Because(err).Try("set BANGER_STATE_DIR to a place you can write to")
	}
	d := &Daemon{opts: opts, startedAt: time.Now().UTC(), stopping: make(chan struct{})}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	d.cancel = cancel
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.lock, err = lockState(ctx, state); err != nil {
		return nil, err
	}
	if err := d.openStore(ctx, filepath.Join(state, "banger.db")); err != nil {
		return nil, err
	}
	if d.identity, err = loadIdentity(filepath.Join(state, "ssh")); err != nil {
		return nil, err
	}
	d.vmm = newVMM(filepath.Join(state, "cache"), d.opts.Config.Firecracker, d.bundle)
	d.jails.home = filepath.Join(state, "cache", "jail")
	if err := d.jails.clear(); err != nil {
		opts.Log.Error("clear a try of a jail away", "err", err) // the next try does it
	}
	d.ops = op.NewRegistry(run)
	d.library = newLibrary(state, opts.Config.Runtime, opts.Config.Mirrors, opts.Version, d.bundle, d.bundleTarget)
	if opts.Config.RepoRoot != "" {
		d.note("repo_root is there for old config files only; write runtime_dir = %q instead", filepath.Join(opts.Config.RepoRoot, "runtime"))
	}
	memory, err := host.MemoryBytes()
	if err != nil {
		return nil, err
	}
	boot, err := host.BootID()
	if err != nil {
		return nil, err
	}
	subnet, err := d.openNetwork(opts.Config, boot)
	if err != nil {
		return nil, err
	}
	dirs := vmdir.Dirs{Root: filepath.Join(state, "vms")}
	d.vms = vm.NewManager(run, withFaults(vm.Config{
		Dirs: dirs, Store: d.store, Disks: newDisks(), Hypervisor: d.vmm,
		Network: d.network, Subnet: subnet,
		Templates: &template.Shelf{Root: filepath.Join(state, "templates")}, TemplateBytes: opts.Config.TemplateBytes, TemplateWanted: d.makeTemplate,
		Pool: vm.PoolSize{Images: opts.Config.Pool, Bytes: opts.Config.PoolBytes}, PoolWanted: d.fillPool,
		Images: d.library, Kernels: d.library, Connect: connect, Reconnect: reconnect,
		Jails:        jail.Check() == nil,
		Host:         vm.Host{CPUs: host.CPUs(), MemoryBytes: memory, BootID: boot},
		Objects:      func() ([]host.Object, error) { return d.objects(run, dirs.Root) },
		DefaultImage: opts.Config.Image, DefaultKernel: opts.Config.Kernel,
		AuthorizedKeys: []string{d.identity.public}, Autostart: d.autostart, Log: opts.Log,
	}))
	d.library.vms, d.library.workshop = d.vms, workshop{d.vms, d.ops}
	if d.store.Fresh() {
		if err := d.rebuild(ctx); err != nil {
			return nil, err
		}
	}
	// Before recovery, which may take its time: names are right as soon as the store is.
	if d.names, err = openNames(ctx, opts.Config, d.store, bridgeReach{d.network}, boot, opts.Log); err != nil {
		return nil, err
	}
	d.swept = d.library.sweep(run, opts.Log)
	if err := d.vms.Recover(ctx); err != nil {
		opts.Log.Error("recover", "err", err) // the VMs concerned say so themselves
	}
	d.watchNetwork()
	d.fillPool()
	if err := d.names.derive(ctx); err != nil { // recovery may have brought a network up
		return nil, err
	}
	return d, nil
}

// objects returns all that exists on the host for VMs.
func (d *Daemon) objects(ctx context.Context, dir string) ([]host.Object, error) {
	found, err := host.Objects(dir)
	if err != nil {
		return nil, err
	}
	groups, err := jail.Groups(dir)
	if err != nil {
		return nil, err
	}
	found = append(found, groups...)
	lines, err := d.names.objects(ctx)
	return append(found, lines...), err
}

// openStore opens the database. A damaged one is set aside for another, which rebuild fills.
func (d *Daemon) openStore(ctx context.Context, path string) (err error) {
	if d.store, err = store.Open(ctx, path); !store.IsDamaged(err) {
		return err
	}
	d.opts.Log.Error("open the database", "err", err)
	aside, err := store.SetAside(path, d.startedAt)
	if err != nil {
		return err
	}
	d.note("the database was damaged; what was in it is kept as %s", aside)
	d.store, err = store.Open(ctx, path)
	return err
}

// rebuild makes the VMs known again that an earlier database knew.
func (d *Daemon) rebuild(ctx context.Context) error {
	restored, unreadable, err := d.vms.Rebuild(ctx)
	if err != nil {
		return err
	}
	if len(restored) > 0 {
		d.note("VMs known again from the copies in their directories: %s", strings.Join(restored, ", "))
	}
	if len(unreadable) > 0 {
		d.note("directories in %s that tell of no VM: %s; `banger system census` shows what is there",
			filepath.Join(d.opts.Config.StateDir, "vms"), strings.Join(unreadable, ", "))
	}
	return d.store.Complete(ctx)
}

// note keeps something for whoever started this daemon, and for the log.
func (d *Daemon) note(format string, args ...any) {
	d.notes = append(d.notes, fmt.Sprintf(format, args...))
	d.opts.Log.Warn(d.notes[len(d.notes)-1])
}

// autostart starts a VM that ran when the host went down, in its own time.
func (d *Daemon) autostart(id string) {
	d.ops.Start("autostart", func(ctx context.Context, o *op.Operation) error {
		o.About(id)
		_, err := d.vms.Start(ctx, o, id, vm.WaitAgent, "")
		if err != nil {
			d.opts.Log.Error("start a VM again after the host's restart", "vm", id, "err", err)
		}
		return err
	})
}

// makeTemplate makes a template behind the back of the user, who was served without one. That
// may go wrong: the next one who could have used it has it tried again.
func (d *Daemon) makeTemplate(spec vm.Spec) {
	// Its machine stands beside that of the user, who has not asked for it.
	if free, err := host.AvailableBytes("/"); err == nil && free < 2*spec.MemoryBytes {
		d.opts.Log.Info("no template is made for want of memory", "image", spec.Image, "available", free)
		return
	}
	d.ops.Start("template", func(ctx context.Context, o *op.Operation) error {
		t, err := d.vms.MakeTemplate(ctx, o, vm.RequestOf(spec))
		if err != nil && ctx.Err() == nil {
			d.opts.Log.Warn("make a template", "image", spec.Image, "err", err)
		} else if err == nil {
			d.opts.Log.Info("a template is there", "template", t.Name)
		}
		return err
	})
}

// poolRest is how long after a VM of the pool was taken another is made: what the first is to do
// comes first.
const poolRest = 2 * time.Second

// fillPool makes the VMs that the pool lacks behind the back of who has taken one. That may go
// wrong: the next one has it tried again.
func (d *Daemon) fillPool() {
	if len(d.opts.Config.Pool) == 0 {
		return
	}
	d.ops.Start("pool", func(ctx context.Context, o *op.Operation) error {
		select {
		case <-time.After(poolRest):
		case <-ctx.Done():
			return ctx.Err()
		}
		err := d.vms.FillPool(ctx, o)
		if err != nil && ctx.Err() == nil {
			d.opts.Log.Warn("keep VMs ready", "err", err)
		}
		return err
	})
}

// Notes tells what whoever started this daemon should know, a sentence each.
func (d *Daemon) Notes() []string { return d.notes }

// connect waits on one connection, for a machine that is starting takes its time.
func connect(ctx context.Context, dial func(context.Context) (net.Conn, error)) (vm.Guest, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	return agentOr(guest.Connect(ctx, conn))
}

// agentOr gives no guest with an error: an agent that is nil would be one.
func agentOr(a *guest.Agent, err error) (vm.Guest, error) {
	if err != nil {
		return nil, err
	}
	return a, nil
}

// reconnect tries again and again, for QEMU can leave a port stuck whose last client went.
func reconnect(ctx context.Context, dial func(context.Context) (net.Conn, error)) (vm.Guest, error) {
	return agentOr(guest.Dial(ctx, dial))
}

// drainLimit bounds how long an ending daemon waits for cancelled operations to undo
// what they did. What is left then the next daemon recovers.
const drainLimit = 30 * time.Second

// Serve listens on the configured socket, calls ready, and serves until ctx ends or a
// client asks it to stop.
func (d *Daemon) Serve(ctx context.Context, ready func()) error {
	l, err := openSocket(d.opts.Config.Socket, d.opts.Config.Owner)
	if err != nil {
		return err
	}
	d.opts.Config.Socket = l.path
	if owner := d.opts.Config.Owner; owner != nil {
		if err := d.identity.handTo(owner, filepath.Dir(l.path)); err != nil {
			l.Close()
			return err
		}
	}
	huma.NewError = server.NewError
	s := server.Server{
		VMs: d.vms, Ops: d.ops, Library: d.library, Runtime: d.library, Names: d.names, Daemon: d.describe, Doctor: d.doctor, Network: d.describeNetwork,
		Identity: d.identity.file, Stop: d.stop, Log: d.opts.Log,
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &http.Server{
		Handler:           s.Handler(d.opts.Version),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(d.opts.Log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() {
		served <- srv.Serve(l)
		close(served)
	}()
	watch, unwatch := context.WithCancel(ctx)
	defer unwatch()
	go d.watchSocket(watch, l)
	ready()
	select {
	case err = <-served:
	case <-ctx.Done():
	case <-d.stopping:
	}
	unwatch()
	d.turnAway(l)
	<-served
	d.cancel() // operations undo what they did
	drain, done := context.WithTimeout(context.WithoutCancel(ctx), drainLimit)
	defer done()
	if derr := d.ops.Drain(drain); derr != nil {
		d.opts.Log.Warn("operations did not end in time; the next daemon will recover them")
	}
	ended := make(chan error, 1)
	go func() { ended <- d.vms.EndPool(drain) }() // a VMM that can't be killed is not waited for
	var left error
	select {
	case left = <-ended:
	case <-drain.Done():
		left = drain.Err()
	}
	if left != nil {
		d.opts.Log.Warn("VMs of the pool are left; the next daemon will remove them", "err", left)
	}
	cancel() // of streams and followers
	return errors.Join(err, srv.Shutdown(drain))
}

// turnAway takes no more clients: who comes now starts the next daemon, which waits for the end
// of this one.
func (d *Daemon) turnAway(l *endpoint) {
	if _, err := d.lock.WriteAt([]byte(ending), 0); err != nil { // on a full disk, say
		d.opts.Log.Warn("tell the next daemon that this one is ending", "err", err)
	}
	l.Close() // says only that it is closed already, if so
	l.remove()
}

// stop ends Serve; it returns at once.
func (d *Daemon) stop() { d.stopOnce.Do(func() { close(d.stopping) }) }

// Close gives everything back. VMs run on.
func (d *Daemon) Close() error {
	d.cancel()
	if d.swept != nil {
		d.swept()
	}
	var err error
	if d.names != nil {
		err = d.names.close()
	}
	if d.vms != nil {
		err = errors.Join(err, d.vms.Close())
	}
	if d.network != nil {
		err = errors.Join(err, d.network.Close())
	}
	if d.store != nil {
		err = errors.Join(err, d.store.Close())
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

func (d *Daemon) describe(ctx context.Context) (api.Daemon, error) {
	vms, err := d.vms.List(ctx)
	if err != nil {
		return api.Daemon{}, err
	}
	out := api.Daemon{Version: d.opts.Version, PID: os.Getpid(), StartedAt: d.startedAt, StateDir: d.opts.Config.StateDir,
		Socket: d.opts.Config.Socket, VMs: len(vms), Notes: d.notes}
	for _, v := range vms {
		if v.State.HasMachine() {
			out.Running++
		}
	}
	return out, nil
}
