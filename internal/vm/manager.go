package vm

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/jail"
	"banger/internal/op"
	"banger/internal/template"
)

// Host is what the manager must know of the machine that it runs on.
type Host struct {
	CPUs        int
	MemoryBytes int64
	BootID      string // of its running boot: a machine of another can't be alive
}

// Config is what a Manager works with.
type Config struct {
	Dirs           Dirs
	Store          Store
	Disks          Disks
	Hypervisor     Hypervisor
	Images         Images
	Kernels        Kernels
	Network        Network
	Templates      Templates
	TemplateBytes  int64           // what templates may take of the disk; 0: none are made or used
	TemplateWanted func(spec Spec) // called when one would have been used, had there been one
	Pool           PoolSize
	PoolWanted     func()       // called when a VM of the pool was taken
	Subnet         netip.Prefix // of the bridge where no VM has an address yet; zero: any that is free
	Connect        Connect      // to a machine that is just starting
	Reconnect      Connect      // to one whose guest has answered before
	Host           Host
	Jails          bool                          // machines are confined, but for those that are not to be
	Objects        func() ([]host.Object, error) // what exists on the host in the VMs' directories
	DefaultImage   string
	DefaultKernel  string
	AuthorizedKeys []string        // that every guest's SSH server accepts
	Autostart      func(id string) // called in recovery for a VM that is to run again
	Log            *slog.Logger
}

// Manager is the one way to change a VM.
type Manager struct {
	Config
	ctx    context.Context // of the watchers; ends with the daemon
	locks  op.Locks
	leases leases
	usages usages

	// artefacts is held for reading while a VM comes to depend on an image or a kernel,
	// and for writing while one is removed.
	artefacts sync.RWMutex

	addresses sync.Mutex // held while a VM takes an address on the bridge

	making templatesMaking
	pool   pool

	mu       sync.Mutex
	running  map[string]*running // by VM id
	watchers sync.WaitGroup
}

// NewManager returns a manager of the VMs in the store. Until [Manager.Recover] has been
// called it knows of no machine. It stops watching machines when ctx ends.
func NewManager(ctx context.Context, c Config) *Manager {
	return &Manager{Config: c, ctx: ctx, running: map[string]*running{}, making: templatesMaking{one: make(chan struct{}, 1)}}
}

// Close lets go of all machines, which run on.
func (m *Manager) Close() error {
	m.mu.Lock()
	var all []*running
	for _, r := range m.running {
		all = append(all, r)
	}
	m.running = map[string]*running{}
	m.mu.Unlock()
	var err error
	for _, r := range all {
		err = errors.Join(err, r.close())
	}
	m.watchers.Wait()
	return err
}

// dir is the VM's own directory on the host.
func (m *Manager) dir(id string) string { return m.Dirs.Path(id) }

// update changes the VM's row, as [Store.Update] does, and then the copy of it in the VM's
// directory. The copy may fall behind, on a full disk say: the row is what counts.
func (m *Manager) update(ctx context.Context, id, cause string, change func(*VM) error, resources ...Change) (VM, error) {
	v, err := m.Store.Update(ctx, id, cause, change, resources...)
	if err == nil {
		if err := m.Dirs.Save(v); err != nil {
			m.Log.Warn("keep a copy of a VM's row", "vm", id, "err", err)
		}
	}
	return v, err
}

// Directory is where the VM's files are on the host.
func (m *Manager) Directory(v VM) string { return m.dir(v.ID) }

// jailed tells whether a machine of v's is to be confined.
func (m *Manager) jailed(v VM) bool { return m.Jails && !v.Spec.Unjailed }

// Confinement tells how the VM's machine is confined. errs.NotFound if it has none.
func (m *Manager) Confinement(v VM) (jail.State, error) {
	if v.Machine == nil {
		return jail.State{}, errs.New(errs.NotFound, "VM %s does not run", v.Name)
	}
	return jail.Look(v.Machine.Process)
}

// List returns all VMs by name, but for one of which a template is being made. One that could
// not be removed after that is for the user to see.
func (m *Manager) List(ctx context.Context) ([]VM, error) {
	all, err := m.Store.List(ctx)
	hidden := func(v VM) bool {
		return v.Spec.Throwaway && len(m.making.that(func(x *making) bool { return x.vm == v.Name })) > 0
	}
	if !slices.ContainsFunc(all, hidden) {
		return all, err
	}
	return slices.DeleteFunc(slices.Clone(all), hidden), err // the list is the store's, too
}

// Find returns the VM that ref means: a name, an id, or a unique prefix of either.
func (m *Manager) Find(ctx context.Context, ref string) (VM, error) {
	if v, err := m.Store.Get(ctx, ref); errs.KindOf(err) != errs.NotFound {
		return v, err
	}
	vms, err := m.Store.List(ctx)
	if err != nil {
		return VM{}, err
	}
	return find(vms, ref)
}

// lock takes the VM's lock and returns the VM as it is then; doing says what for.
func (m *Manager) lock(ctx context.Context, id, doing string) (VM, func(), error) {
	unlock, err := m.locks.Lock(ctx, id, doing)
	if err != nil {
		return VM{}, nil, err
	}
	v, err := m.Store.Get(ctx, id)
	if err != nil {
		unlock()
		return VM{}, nil, err
	}
	return v, unlock, nil
}

// Unused calls remove while no VM can come to depend on the image or kernel that uses
// asks about. errs.Conflict, naming the VMs, if some do.
func (m *Manager) Unused(ctx context.Context, what string, uses func(VM) bool, remove func() error) error {
	m.artefacts.Lock()
	defer m.artefacts.Unlock()
	vms, err := m.Store.List(ctx)
	if err != nil {
		return err
	}
	var users []string
	for _, v := range vms {
		if uses(v) {
			users = append(users, v.Name)
		}
	}
	if len(users) > 0 {
		return errs.New(errs.Conflict, "%s is in use by %s", what, sentenceList(users)).
			Try("remove %s first: banger rm %s", plural(len(users), "that VM", "those VMs"), users[0])
	}
	return remove()
}

// Settled calls do with all VMs and snapshots while none is being made known, so that what they
// depend on can be changed.
func (m *Manager) Settled(ctx context.Context, do func([]VM, []template.Template) error) error {
	m.artefacts.Lock()
	defer m.artefacts.Unlock()
	vms, err := m.Store.List(ctx)
	if err != nil {
		return err
	}
	all, err := m.Templates.List()
	if err != nil {
		return err
	}
	return do(vms, slices.DeleteFunc(all, func(t template.Template) bool { return !t.Snapshot }))
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// sentenceList writes up to five names out and counts the rest.
func sentenceList(names []string) string {
	const most = 5
	s := ""
	for i, n := range names {
		if i == most {
			return s + " and others"
		}
		if i > 0 {
			s += ", "
		}
		s += n
	}
	return s
}

// running is a machine that runs now, with the connection to its guest.
type running struct {
	machine   hypervisor.Machine
	reconnect Connect

	mu      sync.Mutex // held while connecting: callers share one connection
	connect Connect    // for the next connection
	guest   Guest
}

// channel returns the connection to the guest, made anew if the last one has ended.
func (r *running) channel(ctx context.Context) (Guest, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.guest != nil {
		select {
		case <-r.guest.Done():
			r.guest.Close()
			r.guest = nil
		default:
			return r.guest, nil
		}
	}
	g, err := r.connect(ctx, r.machine.Channel)
	if err != nil {
		return nil, err
	}
	r.connect = r.reconnect
	r.guest = g
	return g, nil
}

// streams is how many streams to the guest are open.
func (r *running) streams() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.guest == nil {
		return 0
	}
	return r.guest.Streams()
}

func (r *running) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	if r.guest != nil {
		err = r.guest.Close()
	}
	return errors.Join(err, r.machine.Close())
}

// reconnectLimit bounds how long a running guest may take to answer on a new connection.
const reconnectLimit = 30 * time.Second

// Guest returns the control channel to a running VM's guest.
func (m *Manager) Guest(ctx context.Context, ref string) (Guest, error) {
	v, err := m.Find(ctx, ref)
	if err != nil {
		return nil, err
	}
	r, err := m.machineOf(v)
	if err != nil {
		return nil, err
	}
	if v.State == Paused {
		return nil, errs.New(errs.Conflict, "VM %s is paused", v.Name).Try("banger resume %s", v.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, reconnectLimit)
	defer cancel()
	g, err := r.channel(ctx)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "the guest of VM %s does not answer", v.Name).Because(err).
			Try("banger logs %s shows its console", v.Name)
	}
	return g, nil
}

// Console returns the console of a running VM.
func (m *Manager) Console(ctx context.Context, ref string) (hypervisor.Console, error) {
	v, err := m.Find(ctx, ref)
	if err != nil {
		return nil, err
	}
	r, err := m.machineOf(v)
	if err != nil {
		return nil, err
	}
	return r.machine.Console(), nil
}

// machineOf returns the running machine of v; errs.Conflict if it has none.
func (m *Manager) machineOf(v VM) (*running, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := m.running[v.ID]; ok {
		return r, nil
	}
	e := errs.New(errs.Conflict, "VM %s is %s", v.Name, v.State)
	switch {
	case v.State == Stopped || v.State == Failed:
		e = e.Try("banger start %s", v.Name)
	case v.State == Suspended:
		e = e.Try("banger resume %s", v.Name)
	case v.State.HasMachine(): // being recovered still, or settled already
		e = errs.New(errs.Busy, "the machine of VM %s can't be reached now", v.Name).Try("try again in a moment")
	}
	return nil, e
}

// ReadLog reads the VM's console log from its oldest byte. With follow the log of a running VM
// goes on until its machine ends or ctx does.
func (m *Manager) ReadLog(ctx context.Context, ref string, follow bool) (io.ReadCloser, error) {
	v, err := m.Find(ctx, ref)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	r := m.running[v.ID]
	m.mu.Unlock()
	if r == nil {
		return m.Hypervisor.ReadLog(m.dir(v.ID))
	}
	return r.machine.Console().Log(ctx, follow)
}
