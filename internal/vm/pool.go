package vm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/guest/proto"
	"banger/internal/op"
)

// PoolSize says how many VMs are kept ready.
type PoolSize struct {
	Images map[string]int // by name: how many of the image, as made for who asks for nothing else
	Bytes  int64          // what their guests may have of memory together
}

// pool is the VMs that are kept ready: they have started, and are paused until someone asks for
// one like them, who then need not wait for a start. To the store they are VMs of a client that
// is this daemon, and go with it.
type pool struct {
	filling sync.Mutex // held while VMs are made for it

	mu      sync.Mutex
	lease   string // of all of them; empty before the first
	ready   []waiting
	trouble map[string]string // by image: why there are fewer than are wanted
}

// PoolImage is how the pool stands with an image.
type PoolImage struct {
	Image         string
	Wanted, Ready int
	MemoryBytes   int64  // what those that are ready may take together
	Trouble       string // why there are fewer than are wanted, once that was tried
}

// PoolImages tells how the pool stands, by image.
func (m *Manager) PoolImages() (all []PoolImage) {
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	for _, image := range slices.Sorted(maps.Keys(m.Pool.Images)) {
		x := PoolImage{Image: image, Wanted: m.Pool.Images[image], Trouble: m.pool.trouble[image]}
		for _, w := range m.pool.ready {
			if w.spec.Image == image {
				x.Ready++
				x.MemoryBytes += w.spec.MemoryBytes
			}
		}
		all = append(all, x)
	}
	return all
}

// went records how an attempt to fill it with VMs of an image has ended.
func (p *pool) went(image string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trouble == nil {
		p.trouble = map[string]string{}
	}
	delete(p.trouble, image)
	if err != nil {
		p.trouble[image] = err.Error()
	}
}

// waiting is one of them.
type waiting struct {
	id      string
	started time.Time // since when nobody has had it
	spec    Spec      // of what it stands for
	base    disk.Base // of its image
	kernel  string    // digest
}

// FillPool makes the VMs that the pool lacks.
func (m *Manager) FillPool(ctx context.Context, o *op.Operation) error {
	m.pool.filling.Lock()
	defer m.pool.filling.Unlock()
	if err := m.forgetTaken(ctx); err != nil {
		return err
	}
	var all []error
	for _, image := range slices.Sorted(maps.Keys(m.Pool.Images)) {
		err := m.fillPoolWith(ctx, o, image)
		if ctx.Err() != nil { // which says nothing of the image
			return errors.Join(append(all, ctx.Err())...)
		}
		if m.pool.went(image, err); err != nil {
			all = append(all, fmt.Errorf("a VM of image %s for the pool: %w", image, err))
		}
	}
	return errors.Join(all...)
}

// fillPoolWith makes the VMs of an image that the pool lacks.
func (m *Manager) fillPoolWith(ctx context.Context, o *op.Operation, image string) error {
	for ctx.Err() == nil && m.pool.count(image) < m.Pool.Images[image] {
		spec, err := m.fill(Request{Image: image})
		if err != nil {
			return err
		}
		if has := m.pool.bytes(); has+spec.MemoryBytes > m.Pool.Bytes {
			return errs.New(errs.Unavailable, "another VM has %d MiB of memory; the pool may have %d, and has %d", spec.MemoryBytes>>20, m.Pool.Bytes>>20, has>>20).
				Try("set pool_memory in the config file")
		}
		if err := m.addToPool(ctx, o, spec); err != nil {
			return err
		}
	}
	return nil
}

func (p *pool) count(image string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.ready {
		if w.spec.Image == image {
			n++
		}
	}
	return n
}

func (p *pool) bytes() (sum int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.ready {
		sum += w.spec.MemoryBytes
	}
	return sum
}

// forgetTaken forgets the VMs that the user has removed or stopped.
func (m *Manager) forgetTaken(ctx context.Context) error {
	vms, err := m.Store.List(ctx)
	if err != nil {
		return err
	}
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	m.pool.ready = slices.DeleteFunc(m.pool.ready, func(w waiting) bool {
		return !slices.ContainsFunc(vms, w.is)
	})
	return nil
}

// is tells whether v is the VM, as it was put into the pool.
func (w waiting) is(v VM) bool {
	return v.ID == w.id && v.Spec.Pooled && v.State == Paused && v.StartedAt.Equal(w.started)
}

// addToPool makes a VM of this spec. What whoever gets it will have it do first is done once, for
// in a machine whose code is translated it takes five times as long the first time.
func (m *Manager) addToPool(ctx context.Context, o *op.Operation, spec Spec) (err error) {
	w := waiting{spec: spec}
	if w.base, w.kernel, err = m.origin(spec); err != nil {
		return err
	}
	req := Request{Name: "pool-" + randomHex(4), Image: spec.Image, Kernel: spec.Kernel, Start: true, Wait: WaitBoot, Lease: m.poolLease(), pooled: true}
	v, err := m.Create(ctx, o, req)
	if err != nil {
		return err
	}
	rehearsal, cancel := context.WithTimeout(ctx, warmLimit) // a machine that has halted says nothing
	defer cancel()
	g, err := m.Guest(rehearsal, v.ID)
	if err == nil {
		err = g.Call(rehearsal, proto.MethodRehearse, nil, nil)
	}
	if err == nil {
		_, err = m.Pause(ctx, v.ID)
	}
	if err != nil {
		return errors.Join(err, m.Delete(context.WithoutCancel(ctx), v.ID, true))
	}
	w.id, w.started = v.ID, v.StartedAt
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	m.pool.ready = append(m.pool.ready, w)
	return nil
}

// origin tells what a VM of this spec would be made of now.
func (m *Manager) origin(s Spec) (disk.Base, string, error) {
	img, err := m.Images.Image(s.Image)
	if err != nil {
		return disk.Base{}, "", err
	}
	k, err := m.Kernels.Kernel(s.Kernel)
	return baseOf(img), k.SHA256, err
}

func (m *Manager) poolLease() string {
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	if m.pool.lease == "" {
		m.pool.lease = m.OpenLease()
	}
	return m.pool.lease
}

// EndPool removes the VMs of the pool.
func (m *Manager) EndPool(ctx context.Context) error {
	m.pool.mu.Lock()
	lease := m.pool.lease
	m.pool.lease, m.pool.ready = "", nil
	m.pool.mu.Unlock()
	if lease == "" {
		return nil
	}
	return m.EndLease(ctx, lease)
}

// dropFromPool removes the VMs of the pool that were made of an image or a kernel.
func (m *Manager) dropFromPool(ctx context.Context, uses func(base disk.Base, kernel string) bool) (err error) {
	gone := m.pool.take(-1, func(w waiting) bool { return uses(w.base, w.spec.Kernel) })
	for _, w := range gone {
		if removed := m.Delete(ctx, w.id, true); errs.KindOf(removed) != errs.NotFound {
			err = errors.Join(err, removed)
		}
	}
	return err
}

// take takes up to n VMs for which is holds, or all of them if n is negative.
func (p *pool) take(n int, is func(waiting) bool) (taken []waiting) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = slices.DeleteFunc(p.ready, func(w waiting) bool {
		if len(taken) == n || !is(w) {
			return false
		}
		taken = append(taken, w)
		return true
	})
	return taken
}

// asked is what of a spec a VM can't be given later.
func asked(s Spec) Spec {
	s.Env, s.AutoRemove, s.Lease, s.Autostart = nil, false, "", false
	return s
}

// isFilling tells whether VMs are being made for the pool.
func (p *pool) isFilling() bool {
	if !p.filling.TryLock() {
		return true
	}
	p.filling.Unlock()
	return false
}

// claim gives who asks for a VM like one of the pool that one. ok is false if there is none.
func (m *Manager) claim(ctx context.Context, o *op.Operation, req Request, spec Spec, begin time.Time) (_ VM, ok bool) {
	if !req.Start || req.Boot == Cold || req.From != nil || req.throwaway || req.pooled || len(spec.Forwards) > 0 {
		return VM{}, false
	}
	if req.Name != "" {
		if _, err := m.Store.Get(ctx, req.Name); errs.KindOf(err) != errs.NotFound {
			return VM{}, false // and not for the want of a VM
		}
	}
	taken := m.pool.take(1, func(w waiting) bool { return reflect.DeepEqual(asked(w.spec), asked(spec)) })
	if len(taken) == 0 {
		if m.Pool.Images[spec.Image] > 0 && !m.pool.isFilling() { // what went wrong last time may go well now
			m.PoolWanted()
		}
		return VM{}, false
	}
	v, err := m.become(ctx, o, taken[0], req.Name, spec, begin)
	m.PoolWanted()
	if err == nil {
		return v, true
	}
	m.Log.Info("a VM of the pool is not used", "vm", taken[0].id, "err", err)
	if err := m.Delete(context.WithoutCancel(ctx), taken[0].id, true); err != nil && errs.KindOf(err) != errs.NotFound {
		m.Log.Error("remove a VM of the pool", "vm", taken[0].id, "err", err)
	}
	return VM{}, false
}

// become makes a VM of the pool one of this name and spec. Until that is done it is the pool's,
// and goes with the daemon.
func (m *Manager) become(ctx context.Context, o *op.Operation, w waiting, name string, spec Spec, begin time.Time) (VM, error) {
	v, unlock, err := m.lock(ctx, w.id, "claimed")
	if err != nil {
		return v, err
	}
	defer unlock()
	base, kernel, err := m.origin(spec)
	if err != nil || !w.is(v) || kernel != w.kernel || !reflect.DeepEqual(base, w.base) {
		return v, errors.Join(err, errors.New("it is not any more what it was"))
	}
	if spec.Lease != "" {
		within, release, held := m.leases.within(ctx, spec.Lease)
		defer release()
		if ctx = within; !held {
			return v, errors.New("the client that wanted it is gone")
		}
	}
	x := v
	if x.Name, err = m.freeName(ctx, name); err != nil {
		return v, err
	}
	x.Spec.Env, x.Spec.AutoRemove, x.Spec.Autostart, x.Spec.Lease, x.Spec.Pooled = slices.Concat(v.Spec.Env, spec.Env), spec.AutoRemove, spec.Autostart, spec.Lease, false
	r, err := m.machineOf(v)
	if err != nil {
		return v, err
	}
	o.About(v.ID)
	o.Stage("waking a VM", 0, 0)
	if err := r.machine.Resume(ctx); err != nil {
		return v, err
	}
	if err := m.ready(ctx, x, r, &origin{ready: true}); err != nil {
		return v, err
	}
	if v, err = m.update(ctx, v.ID, "claimed", func(y *VM) error {
		y.Name, y.Spec, y.CreatedAt = x.Name, x.Spec, begin.UTC()
		y.StartedAt, y.StartTook, y.StartKind = time.Now().UTC(), time.Since(begin), Warm
		return y.To(Running, "")
	}); err != nil {
		return v, err
	}
	if spec.Lease != "" && !m.leases.isHeld(spec.Lease) { // who ended it has not seen whose this is
		return v, errors.New("the client that wanted it has gone")
	}
	return v, nil
}

// freeName returns the name asked for, or invents one. errs.Conflict if it is taken.
func (m *Manager) freeName(ctx context.Context, name string) (string, error) {
	vms, err := m.Store.List(ctx)
	if err != nil {
		return "", err
	}
	taken := func(n string) bool { return slices.ContainsFunc(vms, func(v VM) bool { return v.Name == n }) }
	switch {
	case name == "":
		return inventName(taken), nil
	case taken(name):
		return "", errs.New(errs.Conflict, "there is a VM %s already", name)
	}
	return name, nil
}
