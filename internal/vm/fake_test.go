package vm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/disk"
	diskcopy "banger/internal/disk/copy"
	"banger/internal/disk/qcow2"
	"banger/internal/errs"
	"banger/internal/faults"
	"banger/internal/guest/proto"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/network"
	"banger/internal/op"
	"banger/internal/store"
	"banger/internal/template"
	"banger/internal/vm"
	"banger/internal/vmdir"
)

// world is a host in memory with a real store and real disks. It outlives managers, as a
// host does daemons.
type world struct {
	t    testing.TB
	dir  string
	base string

	mu        sync.Mutex
	machines  map[string]*machine // by directory
	nextPID   int
	fail      string   // the step that fails: launch, channel, configure, adopt, remove, disk
	silent    bool     // guests never answer
	halts     string   // why machines halt as soon as they are launched
	boot      string   // what init says of its start
	ignores   bool     // guests take no notice of a shutdown
	froze     int      // how often guests have frozen their filesystem
	bootID    string   // of the host's running boot
	again     []string // ids of VMs that recovery wants started
	hangs     string   // id of a VM whose machine's monitor does not answer
	stray     []host.Object
	lastConf  proto.Configure
	gate      gate // around all that managers do
	level     slog.Level
	net       *fakeNet
	vmm       string // which program machines are run by
	budget    int64  // of templates
	pool      vm.PoolSize
	refills   int // how often a refill of it was asked for
	wanted    []vm.Spec
	streams   int               // open to every guest
	doubts    string            // of Firecracker
	complaint string            // of every machine
	report    hypervisor.Report // of every machine
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, dir: quickDir(t), machines: map[string]*machine{}, nextPID: 100, boot: "running", bootID: "boot-1"}
	w.net = &fakeNet{w: w, ports: map[string]network.Port{}}
	w.base = filepath.Join(w.dir, "base.ext4")
	if err := os.WriteFile(w.base, make([]byte, 1<<20), 0o400); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) failing(step string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail == step {
		return fmt.Errorf("%s fails", step)
	}
	return nil
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// quickDir is a directory where a flush costs nothing, if the host has such a place.
func quickDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "banger-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// daemon opens a manager as a starting daemon does. The function it returns ends it.
func (w *world) daemon() (*vm.Manager, func()) {
	w.t.Helper()
	m, end, err := w.open()
	if err != nil {
		w.t.Errorf("recover: %v", err)
	}
	return m, end
}

// open is daemon for those who expect that the recovery does not work out.
func (w *world) open() (*vm.Manager, func(), error) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	s, err := store.Open(ctx, w.database())
	if err != nil {
		w.t.Fatal(err)
	}
	m := vm.NewManager(ctx, faults.Behind(vm.Config{
		Dirs: vmdir.Dirs{Root: w.vms()}, Store: s, Disks: failingDisks{disk.Set{Drivers: []disk.Driver{qcow2.Driver{}, diskcopy.New()}, Order: []string{"qcow2", "copy"}}, w}, Hypervisor: w, Images: w, Kernels: w, Network: w.net,
		Connect: w.connect, Reconnect: w.connect, Host: vm.Host{CPUs: 2, MemoryBytes: 8 << 30, BootID: w.bootID}, DefaultImage: "tiny", DefaultKernel: "debian",
		Templates: &template.Shelf{Root: w.templates()}, TemplateBytes: w.budget,
		Pool: w.pool, PoolWanted: func() { w.set(func() { w.refills++ }) },
		TemplateWanted: func(s vm.Spec) { w.set(func() { w.wanted = append(w.wanted, s) }) },
		Objects:        w.objects, Autostart: func(id string) { w.set(func() { w.again = append(w.again, id) }) },
		Log: slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: w.level})),
	}, w.gate.pass))
	if s.Fresh() {
		if _, _, err = m.Rebuild(ctx); err == nil {
			err = s.Complete(ctx)
		}
	}
	if err == nil {
		err = m.Recover(ctx)
	}
	return m, sync.OnceFunc(func() {
		cancel()
		if err := m.Close(); err != nil {
			w.t.Error(err)
		}
		if err := s.Close(); err != nil {
			w.t.Error(err)
		}
	}), err
}

func (w *world) database() string { return filepath.Join(w.dir, "banger.db") }

func (w *world) templates() string { return filepath.Join(w.dir, "templates") }

func (w *world) vms() string { return filepath.Join(w.dir, "vms") }

// objects is what host.Objects finds on a real host.
func (w *world) objects() ([]host.Object, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Clone(w.stray)
	for dir, m := range w.machines {
		all = append(all, host.Object{Kind: "process", Name: fmt.Sprint(m.rec.Process.PID), Path: filepath.Base(dir), Process: m.rec.Process})
	}
	return all, nil
}

// census lists what exists on the host: machines and VMs' directories.
func (w *world) census() (found []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for dir := range w.machines {
		found = append(found, "machine "+filepath.Base(dir))
	}
	for id := range w.net.ports {
		found = append(found, "port "+id)
	}
	entries, err := os.ReadDir(w.vms())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		found = append(found, "directory "+e.Name())
	}
	slices.Sort(found)
	return found
}

type failingDisks struct {
	disk.Set
	w *world
}

func (d failingDisks) Choose(ctx context.Context, _ hypervisor.Backend, want string, b disk.Base, dir string) (disk.Choice, error) {
	return d.Set.Choose(ctx, want, b, dir)
}

func (d failingDisks) Clone(ctx context.Context, driver string, b disk.Base, s disk.Spec) (disk.Volume, error) {
	v, err := d.Set.Clone(ctx, driver, b, s)
	if err == nil {
		err = d.w.failing("disk") // after the fact: something is there to undo
	}
	return v, err
}

func (d failingDisks) Attach(ctx context.Context, h disk.Home, v disk.Volume) (disk.Attached, error) {
	a, err := d.Set.Attach(ctx, h, v)
	if err == nil {
		err = d.w.failing("attach")
	}
	return a, err
}

func (d failingDisks) Detach(ctx context.Context, h disk.Home) error {
	return errors.Join(d.w.failing("detach"), d.Set.Detach(ctx, h))
}

func (d failingDisks) Check(disk.Home) error { return d.w.failing("disk check") }

func (w *world) Image(name string) (image.Image, error) {
	if name != "tiny" {
		return image.Image{}, errs.New(errs.NotFound, "there is no image %q", name)
	}
	return image.Image{Name: name, Path: w.base, VirtualBytes: 1 << 20}, nil
}

func (w *world) Kernel(name string) (kernel.Kernel, error) {
	if name != "debian" {
		return kernel.Kernel{}, errs.New(errs.NotFound, "there is no kernel %q", name)
	}
	return kernel.Kernel{Name: name, Vmlinux: "/k/vmlinux", ModulesImage: "/k/modules.ext4"}, nil
}

func (w *world) Initramfs(context.Context, kernel.Kernel) (string, error) {
	return "/k/initramfs", w.failing("initramfs")
}

// Choose has Firecracker, which opens TAPs by name, run what asks for it.
func (w *world) Choose(_ context.Context, spec vm.Spec, _ string) (hypervisor.Backend, hypervisor.Accel, error) {
	switch {
	case spec.Backend == hypervisor.Firecracker:
		return hypervisor.Firecracker, hypervisor.KVM, w.failing("firecracker")
	case spec.Accel == "kvm":
		return "", "", errs.New(errs.Unavailable, "there is no KVM here")
	}
	return hypervisor.QEMU, hypervisor.TCG, nil
}

func (w *world) Doubts(_ context.Context, backend hypervisor.Backend) string {
	if backend == hypervisor.Firecracker {
		return w.doubts
	}
	return ""
}

func (w *world) Launch(_ context.Context, spec hypervisor.MachineSpec) (hypervisor.Machine, error) {
	if err := w.failing("launch"); err != nil {
		return nil, err
	}
	if spec.From != nil {
		if err := w.failing("load"); err != nil {
			return nil, err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := os.Stat(spec.Disks[0].Path); err != nil {
		return nil, err
	}
	if _, there := w.machines[spec.Dir]; there {
		w.t.Errorf("a second machine is launched in %s", spec.Dir)
	}
	w.nextPID++
	m := &machine{w: w, done: make(chan struct{}), halts: make(chan string, 1), memory: spec.MemoryBytes, from: spec.From, spec: spec, paused: spec.From != nil,
		rec: hypervisor.Record{VMID: spec.VMID, Dir: spec.Dir, Accel: spec.Accel, Backend: spec.Backend, Process: host.Process{PID: w.nextPID, BootID: w.bootID}}}
	w.machines[spec.Dir] = m
	if w.halts != "" {
		m.halts <- w.halts
	}
	return m, nil
}

// Kin is what machines of this world have to have in common.
func (w *world) Kin(spec hypervisor.MachineSpec) (string, error) {
	if spec.HugePages {
		return "", hypervisor.ErrHugePages()
	}
	return fmt.Sprint(spec.CPUs, spec.MemoryBytes, spec.Cmdline, len(spec.NICs), w.vmm), nil
}

func (w *world) Adopt(ctx context.Context, rec hypervisor.Record) (hypervisor.Machine, error) {
	w.mu.Lock()
	hangs := w.hangs == rec.VMID
	w.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := w.failing("adopt"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	m, ok := w.machines[rec.Dir]
	if !ok || m.rec != rec {
		return nil, errs.New(errs.NotFound, "process %d is gone", rec.Process.PID)
	}
	return m, nil
}

func (w *world) Remove(_ context.Context, _, dir string, rec *hypervisor.Record) error {
	if err := w.failing("remove"); err != nil {
		return err
	}
	w.mu.Lock()
	m := w.machines[dir]
	w.mu.Unlock()
	if m != nil && (rec == nil || rec.Process == m.rec.Process) { // a record is believed, as by QEMU's driver
		m.end("killed", true)
	}
	return nil
}

func (w *world) ReadLog(string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("Kernel panic \x1b[31m- not syncing\n")), nil
}

// operation runs a verb as the server does and returns the warnings it gave.
func operation(t *testing.T, run func(context.Context, *op.Operation) error) (warnings []string, err error) {
	t.Helper()
	o := op.NewRegistry(t.Context()).Start("test", run)
	o.Follow(t.Context(), func(e op.Event) bool {
		if e.Warning != "" {
			warnings = append(warnings, e.Warning)
		}
		err = e.Err
		return true
	})
	return warnings, err
}

// create creates and starts a VM.
func create(t *testing.T, m *vm.Manager, req vm.Request) (v vm.VM, err error) {
	t.Helper()
	req.Start = true
	_, err = operation(t, func(ctx context.Context, o *op.Operation) error {
		v, err = m.Create(ctx, o, req)
		return err
	})
	return v, err
}

// made is a VM that could be created, and runs.
func made(t *testing.T, m *vm.Manager, req vm.Request) vm.VM {
	t.Helper()
	v, err := create(t, m, req)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// settled waits until the VM is in the state given.
func settled(t *testing.T, m *vm.Manager, name string, want vm.State) vm.VM {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		v, err := m.Find(t.Context(), name)
		if err == nil && v.State == want {
			return v
		}
		if time.Now().After(deadline) {
			t.Fatalf("VM %s is %s (%v), not %s", name, v.State, err, want)
		}
	}
}

// resume has a VM go on.
func resume(t *testing.T, m *vm.Manager, id string) (v vm.VM, err error) {
	t.Helper()
	_, err = operation(t, func(ctx context.Context, o *op.Operation) error {
		v, err = m.Resume(ctx, o, id)
		return err
	})
	return v, err
}
