package vm

import (
	"context"
	"errors"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/op"
)

// Flatten writes the disk of a VM that does not run, as its guest would see it, to a new
// raw file at path, and returns the VM whose it is. With stop one that runs is stopped
// first, and stays, also if it was to be removed when it stops. errs.Conflict if it runs,
// errs.Unavailable if it was stopped but its disk lacks some of what its guest has written.
func (m *Manager) Flatten(ctx context.Context, o *op.Operation, id, path string, stop bool) (VM, error) {
	v, unlock, err := m.lock(ctx, id, "copied")
	if err != nil {
		return VM{}, err
	}
	defer unlock()
	if stop && v.State.HasMachine() {
		var killed error
		v, err = m.stopAnd(ctx, o, v, StopLimit, func(ctx context.Context, v VM, why error) (VM, error) {
			killed = why
			return m.rest(ctx, v, Stopped, "")
		})
		if err != nil {
			return v, err
		}
		if errors.Is(killed, errTorn) {
			return v, errs.New(errs.Unavailable, "VM %s did not power off, so its disk is not whole", v.Name).Because(killed).
				Try("see that there is room for what it writes: banger disk usage; then start it, and try again")
		}
	}
	if v.State == Suspended {
		return v, errs.New(errs.Conflict, "VM %s is suspended: its disk is not at rest", v.Name).Try("resume it and stop it: banger resume %s && banger stop %s", v.Name, v.Name)
	}
	if v.State != Stopped && v.State != Failed {
		return v, errs.New(errs.Conflict, "VM %s is %s", v.Name, v.State).Try("stop it first: banger stop %s", v.Name)
	}
	if err := m.removeMachine(ctx, v); err != nil { // stale remains of an earlier life
		return v, err
	}
	if _, err := m.update(ctx, id, "commit", func(*VM) error { return nil }, Change{KindAttached, Pending}); err != nil {
		return v, err
	}
	a, err := m.Disks.Attach(ctx, m.home(id), v.Disk)
	if err == nil {
		err = disk.Flatten(ctx, a, path, func(done, total int64) { o.Stage("copying the disk", done, total) })
	}
	return v, errors.Join(err, m.removeMachine(context.WithoutCancel(ctx), v))
}
