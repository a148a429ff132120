package vm

import (
	"context"

	"banger/internal/errs"
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
	if v, err = m.update(ctx, id, "pause", func(x *VM) error { return x.To(Paused, "") }); err != nil {
		return v, err
	}
	if err := r.machine.Pause(ctx); err != nil {
		return m.unpaused(ctx, id, errs.New(errs.Internal, "pause VM %s", v.Name).Because(err))
	}
	return v, nil
}

// Resume lets a paused VM go on. Resuming what runs is no error.
func (m *Manager) Resume(ctx context.Context, id string) (VM, error) {
	v, unlock, err := m.lock(ctx, id, "resumed")
	if err != nil {
		return VM{}, err
	}
	defer unlock()
	r, err := m.machineOf(v)
	if err != nil || v.State == Running {
		return v, err
	}
	if err := r.machine.Resume(ctx); err != nil {
		return v, errs.New(errs.Internal, "resume VM %s", v.Name).Because(err)
	}
	return m.unpaused(ctx, id, nil)
}

// unpaused records that the VM runs, and returns err.
func (m *Manager) unpaused(ctx context.Context, id string, err error) (VM, error) {
	v, stored := m.update(context.WithoutCancel(ctx), id, "resume", func(x *VM) error { return x.To(Running, "") })
	if err == nil {
		err = stored
	}
	return v, err
}
