package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/hypervisor"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/op"
	"banger/internal/undo"
)

// Request asks for a new VM; zero fields take defaults. CPUs, MemoryBytes and DiskBytes
// are nil where nothing was asked for, so that 0 is refused and not taken for a default.
type Request struct {
	Name        string
	Image       string
	From        *image.Image // instead of Image: one that has no name yet
	Kernel      string
	CPUs        *int
	MemoryBytes *int64
	HugePages   bool
	DiskBytes   *int64
	DiskDriver  string // empty: auto
	DiskLimit   hypervisor.Limit
	Net         string
	Isolated    bool
	HostAccess  bool
	Forwards    []string // as network.ParseForward reads them
	Backend     string   // empty: auto
	Accel       string
	Nested      bool
	Unjailed    bool
	Env         []string
	AutoRemove  bool
	Autostart   bool
	Lease       string
	Start       bool
	Boot        Boot
	Wait        Wait
	Snapshot    string // to go on from; what the machine is, is that one's
	throwaway   bool
	pooled      bool
}

const (
	defaultCPUs   = 2
	defaultMemory = 512 << 20
	minMemory     = 64 << 20 // a stock kernel with its initramfs does not boot in less
	maxCPUs       = 255      // of the machine types we use
)

// Create makes a VM, and starts it if asked to. If it fails before the guest ran, or is
// cancelled, nothing of the VM is left. A VM whose guest ran but never answered stays as
// failed, for its console to be read, unless it was to be removed anyway.
func (m *Manager) Create(ctx context.Context, o *op.Operation, req Request) (VM, error) {
	begin := time.Now()
	spec, err := m.fill(req)
	if err != nil {
		return VM{}, err
	}
	if v, ok := m.claim(ctx, o, req, spec, begin); ok {
		return v, nil
	}
	newID, err := m.newID()
	if err != nil {
		return VM{}, err
	}
	v := VM{ID: newID, Name: req.Name, Spec: spec, State: Creating, MachineID: randomHex(16), CreatedAt: begin.UTC()}
	if spec.Net != NetNone {
		v.MAC = macOf(v.ID)
	}
	if v.HostKey, v.HostKeyPub, err = NewSSHKey(); err != nil {
		return VM{}, err
	}
	unlock, err := m.locks.Lock(ctx, v.ID, "created")
	if err != nil {
		return VM{}, err
	}
	defer unlock()
	o.About(v.ID)

	var u undo.Stack
	id := v.ID // v is nothing after a step that failed
	fail := func(err error) (VM, error) {
		if undone := u.Rollback(ctx); undone != nil {
			m.markFailed(ctx, id, errors.Join(err, undone))
		}
		return VM{}, err
	}
	if v, err = m.register(ctx, o, req, v, &u); err != nil {
		return fail(err)
	}
	if spec.Lease != "" {
		within, release, held := m.leases.within(ctx, spec.Lease)
		defer release()
		if ctx = within; !held {
			return fail(errs.New(errs.Conflict, "the client that wanted this VM is gone"))
		}
	}
	o.Stage("making the disk", 0, 0)
	if err := m.Dirs.Make(v.ID); err != nil {
		return fail(err)
	}
	if v.Disk, err = m.makeDisk(ctx, o, v); err != nil {
		return fail(err)
	}
	made := func(x *VM) error {
		x.Disk = v.Disk
		if !req.Start {
			return x.To(Stopped, "")
		}
		return nil
	}
	live := []Change{{KindDisk, Live}, {KindDirectory, Live}}
	if req.Start {
		live = append(live, starting(v)...)
	}
	if v, err = m.update(ctx, v.ID, "created", made, live...); err != nil {
		return fail(err)
	}
	if req.Start {
		v, err = m.bootOrFallBack(ctx, o, v, begin, req.Wait, req.Boot)
	}
	if err == nil { // last, for by now the kernel has mostly written it back
		err = v.Disk.Sync()
	}
	if err == nil {
		u.Disarm()
		m.wantTemplate(v, req)
		return v, nil
	}
	if keepForReading(err) && spec.Lease == "" && !spec.AutoRemove && ctx.Err() == nil {
		u.Disarm()
		m.markFailed(ctx, id, err)
		return v, err
	}
	return fail(err)
}

// register writes the VM's row, under an invented name if it has none, and takes hold of
// its image and kernel: from then on neither can be removed.
func (m *Manager) register(ctx context.Context, o *op.Operation, req Request, v VM, u *undo.Stack) (VM, error) {
	m.artefacts.RLock()
	defer m.artefacts.RUnlock()
	k, err := m.Kernels.Kernel(v.Spec.Kernel)
	if err != nil {
		return v, err
	}
	if v.Spec.Backend, _, err = m.Hypervisor.Choose(ctx, v.Spec, k.Vmlinux); err != nil {
		return v, err
	}
	if why := m.Hypervisor.Doubts(ctx, v.Spec.Backend); why != "" {
		o.Warn(why)
	}
	if v.Spec.Snapshot != "" {
		v, err = m.layOnSnapshot(v)
	} else {
		v, err = m.layOnImage(ctx, o, req, v, k)
	}
	if err != nil {
		return v, err
	}
	u.Push("VM "+v.ID, func(ctx context.Context) error { return m.remove(ctx, v.ID, "its creation failed") })
	if v.Spec.Net == NetBridge {
		m.addresses.Lock() // until the row holds it
		defer m.addresses.Unlock()
		if v.Address, err = m.freeAddress(ctx, v.ID); err != nil {
			return v, err
		}
	}
	if v.Name != "" {
		return v, m.Store.Create(ctx, v, KindDirectory, KindDisk)
	}
	for {
		vms, err := m.Store.List(ctx)
		if err != nil {
			return v, err
		}
		v.Name = inventName(func(n string) bool {
			for _, o := range vms {
				if o.Name == n {
					return true
				}
			}
			return false
		})
		err = m.Store.Create(ctx, v, KindDirectory, KindDisk)
		if errs.KindOf(err) != errs.Conflict { // someone took the name just now
			return v, err
		}
	}
}

// layOnImage has v's disk be based on that of its image, or of a template of that. m.artefacts is
// held.
func (m *Manager) layOnImage(ctx context.Context, o *op.Operation, req Request, v VM, k kernel.Kernel) (VM, error) {
	img, err := m.image(req, v.Spec)
	if err != nil {
		return v, err
	}
	if img.Stale != "" {
		o.Warn(fmt.Sprintf("image %s is stale: %s; to build it anew: %s", v.Spec.Image, img.Stale, img.RebuildCommand()))
	}
	if img.Config != nil {
		// Before the VM's own, which win.
		v.Spec.Env = slices.Concat(slices.DeleteFunc(slices.Clone(img.Config.Env), func(kv string) bool { return checkEnv(kv) != nil }), v.Spec.Env)
	}
	v.Base = baseOf(img)
	if _, err := disk.VirtualBytes(v.Base, disk.Spec{Bytes: v.Spec.DiskBytes}); err != nil {
		return v, err
	}
	return m.layOnTemplate(ctx, req, v, img, k)
}

// image returns what the VM is to be made from.
func (m *Manager) image(req Request, s Spec) (image.Image, error) {
	if req.From != nil {
		return *req.From, nil
	}
	return m.Images.Image(s.Image)
}

// fill checks a request and fills in the defaults.
func (m *Manager) fill(req Request) (Spec, error) {
	if req.Snapshot != "" {
		return m.fillFromSnapshot(req)
	}
	s := Spec{Image: req.Image, Kernel: req.Kernel, CPUs: min(defaultCPUs, m.Host.CPUs), MemoryBytes: defaultMemory,
		HugePages: req.HugePages, DiskLimit: req.DiskLimit, DiskDriver: req.DiskDriver, Accel: req.Accel, Nested: req.Nested, Unjailed: req.Unjailed, Env: req.Env, AutoRemove: req.AutoRemove, Autostart: req.Autostart, Lease: req.Lease, Throwaway: req.throwaway, Pooled: req.pooled}
	if req.Name != "" {
		if err := CheckName(req.Name); err != nil {
			return s, err
		}
	}
	switch {
	case req.From != nil:
		s.Image = req.From.Name
	case s.Image == "":
		s.Image = m.DefaultImage
	}
	if s.Kernel == "" {
		s.Kernel = m.DefaultKernel
	}
	if req.CPUs != nil {
		s.CPUs = *req.CPUs
	}
	if s.CPUs < 1 || s.CPUs > maxCPUs {
		return s, errs.New(errs.Invalid, "a VM can't have %d CPUs", s.CPUs).Try("choose 1 to %d; this host has %d", maxCPUs, m.Host.CPUs)
	}
	if req.MemoryBytes != nil {
		s.MemoryBytes = *req.MemoryBytes &^ (1<<20 - 1) // whole MiB, as VMMs count it
	}
	switch {
	case s.MemoryBytes < minMemory:
		return s, errs.New(errs.Invalid, "a VM can't boot in %d bytes of memory", *req.MemoryBytes).Try("give it at least %d MiB", minMemory>>20)
	case s.MemoryBytes > m.Host.MemoryBytes:
		return s, errs.New(errs.Invalid, "a VM can't have %d MiB of memory: this host has %d MiB", s.MemoryBytes>>20, m.Host.MemoryBytes>>20)
	}
	if req.DiskBytes != nil {
		if *req.DiskBytes <= 0 {
			return s, errs.New(errs.Invalid, "a disk can't have %d bytes", *req.DiskBytes)
		}
		s.DiskBytes = *req.DiskBytes
	}
	if l := s.DiskLimit; l.Bytes < 0 || l.Requests < 0 {
		return s, errs.New(errs.Invalid, "a disk can't be limited to %d bytes and %d requests a second", l.Bytes, l.Requests).Try("choose more than 0; 0 is no limit")
	}
	if s.DiskDriver == "" {
		s.DiskDriver = disk.Auto
	}
	if err := m.fillNet(req, &s); err != nil {
		return s, err
	}
	switch s.Backend = hypervisor.Backend(req.Backend); s.Backend {
	case "":
		s.Backend = AutoBackend
	case AutoBackend, hypervisor.QEMU, hypervisor.Firecracker:
	default:
		return s, errs.New(errs.Invalid, "there is no backend %q", req.Backend).Try("use auto, firecracker or qemu")
	}
	switch s.Accel {
	case "":
		s.Accel = "auto"
	case "auto", "kvm", "tcg":
	default:
		return s, errs.New(errs.Invalid, "there is no acceleration %q", s.Accel).Try("use auto, kvm or tcg")
	}
	if err := errors.Join(req.Wait.check(), req.Boot.check()); err != nil {
		return s, err
	}
	for _, kv := range s.Env {
		if err := checkEnv(kv); err != nil {
			return s, err
		}
	}
	return s, nil
}

func checkEnv(kv string) error {
	if k, _, ok := strings.Cut(kv, "="); !ok || k == "" || strings.ContainsRune(kv, 0) {
		return errs.New(errs.Invalid, "%q is no environment variable", kv).Try("write it as KEY=VALUE")
	}
	return nil
}
