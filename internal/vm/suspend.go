package vm

import (
	"context"
	"errors"
	"os"
	"time"

	"banger/internal/errs"
	"banger/internal/kernel"
	"banger/internal/op"
)

// Suspend keeps the VM's machine in files and ends it: resumed, its guest goes on where it was,
// also after a restart of the host. Suspending what is suspended is no error.
func (m *Manager) Suspend(ctx context.Context, o *op.Operation, id string) (VM, error) {
	v, unlock, err := m.lock(ctx, id, "suspended")
	if err != nil {
		return VM{}, err
	}
	defer unlock()
	switch {
	case v.State == Suspended:
		left, err := m.hasMachine(ctx, v) // which an earlier try could not end
		if err == nil && left {
			err = m.removeMachine(ctx, v)
		}
		return v, err
	case v.Spec.AutoRemove || v.Spec.Lease != "":
		return v, errs.New(errs.Conflict, "VM %s is removed when it stops, so it can't be suspended", v.Name)
	}
	r, err := m.machineOf(v)
	if err != nil {
		return v, err
	}
	if _, err := m.keyToSave(ctx, v); err != nil {
		return v, err
	}
	o.Stage("saving the machine", 0, 0)
	if err := m.keep(ctx, v, r); err != nil {
		return v, errors.Join(err, m.agree(ctx, id, r), m.Dirs.DropKept(id))
	}
	// From here on there is no way back: a caller that leaves changes nothing.
	ctx = context.WithoutCancel(ctx)
	suspended, err := m.update(ctx, id, "suspend", func(x *VM) error {
		x.Suspended, x.StoppedAt = true, time.Now().UTC()
		return x.To(Suspended, "")
	})
	if err != nil {
		if now, lost := m.Store.Get(ctx, id); lost == nil && !now.Suspended {
			err = errors.Join(err, m.Dirs.DropKept(id))
		}
		return v, errors.Join(err, m.agree(ctx, id, r))
	}
	return suspended, m.removeMachine(ctx, suspended)
}

// keep saves v's machine in v's directory, where it survives a power cut, and leaves it paused.
func (m *Manager) keep(ctx context.Context, v VM, r *running) error {
	memory, state, err := m.Dirs.Keep(v.ID)
	if err != nil {
		return errs.New(errs.Unavailable, "the machine of VM %s can't be kept", v.Name).Because(err)
	}
	err = r.machine.Save(ctx, memory, state)
	for _, f := range []*os.File{memory, state} {
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = m.Dirs.Seal(v.ID)
	}
	return err
}

// errOtherMachine tells that what is saved of a machine could not go on here.
var errOtherMachine = errors.New("this host would give it another machine now")

// keyToSave is the key of what v's machine is, if that could go on from what is saved of it.
func (m *Manager) keyToSave(ctx context.Context, v VM) (string, error) {
	key, err := m.hardwareNow(ctx, v)
	if err == nil && key != v.Hardware {
		err = errOtherMachine
	}
	if errors.Is(err, errOtherMachine) {
		return "", errs.New(errs.Unavailable, "the machine of VM %s can't be kept", v.Name).Because(err).
			Try("restart it, and it will be of the kind that can: banger restart %s", v.Name)
	}
	if err != nil {
		return "", errs.New(errs.Unavailable, "the machine of VM %s can't be kept", v.Name).Because(err)
	}
	return key, nil
}

// hardwareNow is the key of what the machine of v would be now.
func (m *Manager) hardwareNow(ctx context.Context, v VM) (string, error) {
	k, err := m.Kernels.Kernel(v.Spec.Kernel)
	if err != nil {
		return "", err
	}
	return m.hardwareKey(ctx, v, k)
}

func (m *Manager) hardwareKey(ctx context.Context, v VM, k kernel.Kernel) (string, error) {
	spec, err := m.specNow(ctx, v, k)
	if err != nil {
		return "", err
	}
	return m.hardwareOf(spec, k)
}

// wake has a suspended VM go on where it was; with a boot of Cold it begins anew from its disk.
// v's lock is held.
func (m *Manager) wake(ctx context.Context, o *op.Operation, v VM, begin time.Time, boot Boot) (VM, error) {
	if boot == Cold {
		stopped, err := m.update(ctx, v.ID, "start afresh", func(x *VM) error {
			x.Suspended = false
			return x.To(Stopped, "")
		})
		if err == nil {
			err = m.Dirs.DropKept(v.ID)
		}
		if err != nil {
			return v, err
		}
		return m.start(ctx, o, stopped, begin, "", boot)
	}
	if err := m.removeMachine(ctx, v); err != nil { // which may have outlived its suspension
		return v, err
	}
	key, err := m.hardwareNow(ctx, v)
	if err == nil && key != v.Hardware {
		err = errOtherMachine
	}
	if err == nil {
		err = m.Dirs.CheckKept(v.ID)
	}
	if err != nil {
		return v, errs.New(errs.Unavailable, "VM %s can't go on where it was", v.Name).Because(err).
			Try("mend that, or boot it from its disk: banger start --fresh %s", v.Name)
	}
	was := v
	ctx = context.WithoutCancel(ctx) // half way, what is kept would be lost to a caller that leaves
	if v, err = m.update(ctx, v.ID, "resume", func(*VM) error { return nil }, starting(v)...); err != nil {
		return was, err
	}
	kept := m.Dirs.Kept(v.ID)
	running, err := m.boot(ctx, o, v, begin, WaitAgent, &origin{saved: &kept})
	if err == nil {
		if err := m.Dirs.DropKept(v.ID); err != nil {
			m.Log.Warn("drop what was kept of a machine", "vm", v.ID, "err", err)
		}
		return running, nil
	}
	if _, left := errors.AsType[leftBehind](err); left {
		m.markFailed(ctx, was.ID, err)
		return was, err
	}
	now, lost := m.Store.Get(ctx, v.ID)
	switch {
	case lost != nil: // recovery will tell
		err = errors.Join(err, lost)
	case now.Suspended: // its guest has not run
		err = errors.Join(err, m.neverStarted(ctx, was))
	default:
		m.markFailed(ctx, was.ID, err)
	}
	return was, err
}
