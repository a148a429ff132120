package vm

import (
	"context"
	"errors"
	"time"

	"banger/internal/errs"
	"banger/internal/op"
)

// Pause halts the VM's CPUs; its memory and machine stay. Pausing what is paused is no error.
func (m *Manager) Pause(ctx context.Context, id string) (VM, error) {
	v, unlock, err := m.lock(ctx, id, "paused")
	if err != nil {
		return VM{}, err
	}
	defer unlock()
	if v.State == Paused {
		return v, nil
	}
	r, err := m.machineOf(v)
	if err != nil {
		return v, err
	}
	// The state is written first: should a crash come between, the next daemon makes it true.
	paused, err := m.update(ctx, id, "pause", func(x *VM) error { return x.To(Paused, "") })
	if err != nil {
		return v, errors.Join(err, m.agree(ctx, id, r))
	}
	if err := r.machine.Pause(ctx); err != nil {
		err = errs.New(errs.Internal, "pause VM %s", v.Name).Because(err)
		_, undone := m.update(context.WithoutCancel(ctx), id, "resume", func(x *VM) error { return x.To(Running, "") })
		return v, errors.Join(err, undone, m.agree(ctx, id, r))
	}
	return paused, nil
}

// Resume lets a paused or suspended VM go on. Resuming what runs is no error.
func (m *Manager) Resume(ctx context.Context, o *op.Operation, id string) (VM, error) {
	begin := time.Now()
	v, unlock, err := m.lock(ctx, id, "resumed")
	if err != nil {
		return VM{}, err
	}
	defer unlock()
	if v.Spec.Pooled {
		return v, errs.New(errs.Conflict, "VM %s is kept ready for who asks for one like it", v.Name).Try("banger run takes it")
	}
	if v.State == Suspended {
		return m.wake(ctx, o, v, begin, "")
	}
	r, err := m.machineOf(v)
	if err != nil || v.State == Running {
		return v, err
	}
	if err := r.machine.Resume(ctx); err != nil {
		err = errs.New(errs.Internal, "resume VM %s", v.Name).Because(err)
		return v, errors.Join(err, m.agree(ctx, id, r))
	}
	resumed, err := m.update(context.WithoutCancel(ctx), id, "resume", func(x *VM) error { return x.To(Running, "") })
	if err != nil {
		return v, errors.Join(err, m.agree(ctx, id, r))
	}
	return resumed, nil
}

// agreeLimit bounds how long a monitor may take to answer to agree.
const agreeLimit = 10 * time.Second

// agree makes a VM's machine run or pause as the VM's row says, when a change of the two did
// not work out: what reports an error, a transaction or a monitor, may have taken effect.
func (m *Manager) agree(ctx context.Context, id string, r *running) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), agreeLimit)
	defer cancel()
	v, err := m.Store.Get(ctx, id)
	switch {
	case err != nil:
		return err
	case v.State == Paused:
		return r.machine.Pause(ctx)
	case v.State == Running:
		return r.machine.Resume(ctx)
	}
	return nil
}
