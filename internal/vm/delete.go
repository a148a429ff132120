package vm

import (
	"context"
	"errors"
	"slices"

	"banger/internal/errs"
)

// Delete removes a VM with its disk. One that runs is refused unless force is set. A VM
// that can't be removed wholly stays as failed, and says why.
func (m *Manager) Delete(ctx context.Context, id string, force bool) error {
	v, unlock, err := m.lock(ctx, id, "removed")
	if err != nil {
		return err
	}
	defer unlock()
	if v.State.HasMachine() && !force {
		return errs.New(errs.Conflict, "VM %s is %s", v.Name, v.State).
			Try("stop it first, or remove it as it is: banger rm -f %s", v.Name)
	}
	if err := m.remove(context.WithoutCancel(ctx), id, "rm"); err != nil {
		m.mend(ctx, id, err)
		return err
	}
	return nil
}

// remove takes away everything of a VM, its row last. It serves deletion, the rollback of
// a creation and recovery alike; what is not there is passed over. The VM's lock is held.
func (m *Manager) remove(ctx context.Context, id, cause string) error {
	// Without a copy in its directory, which goes next.
	v, sync, err := m.Store.Intend(ctx, id, cause, func(x *VM) error { return x.To(Deleting, "") },
		Change{KindDisk, Pending}, Change{KindDirectory, Pending})
	if errs.KindOf(err) == errs.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	synced := make(chan error, 1)
	go func() { synced <- sync() }() // while the machine ends, as it would without power
	err = errors.Join(m.endMachine(ctx, v), <-synced)
	if err == nil { // a machine that still runs needs its files
		err = m.Disks.Remove(ctx, m.home(id))
	}
	if err == nil { // and so does what a disk could not be rid of
		err = m.Dirs.Remove(id)
	}
	if err == nil {
		err = m.Store.Delete(ctx, id, cause, KindMachine, KindNetwork, KindAttached, KindDisk, KindDirectory)
	}
	m.usages.forget(v.Disk)
	if err == nil && slices.ContainsFunc(m.needs(v), m.isRetired) { // this may have been its last
		if err := m.dropRetired(ctx); err != nil {
			m.Log.Warn("remove what nothing goes on from any more", "vm", id, "err", err)
		}
	}
	if err != nil {
		m.markFailed(ctx, id, err)
		return errs.New(errs.Internal, "VM %s can't be removed", v.Name).Because(err).Try("mend that, then: banger rm %s", v.Name)
	}
	return nil
}

// removeMachine ends the VM's machine, if it has one, detaches its disk, takes its port away
// and forgets all three. The VM's lock is held.
func (m *Manager) removeMachine(ctx context.Context, v VM) error {
	if err := m.endMachine(ctx, v); err != nil {
		return err
	}
	_, err := m.update(ctx, v.ID, "machine removed", func(x *VM) error {
		x.Machine = nil
		return nil
	}, Change{KindMachine, Gone}, Change{KindAttached, Gone}, Change{KindNetwork, Gone})
	return err
}

// endMachine ends the VM's machine, if it has one, detaches its disk and takes its port away: of
// all three nothing but rows is left.
func (m *Manager) endMachine(ctx context.Context, v VM) error {
	m.mu.Lock()
	r := m.running[v.ID]
	delete(m.running, v.ID)
	m.mu.Unlock()
	var killed error
	if r != nil {
		killed = errors.Join(r.machine.Kill(ctx), r.close())
	}
	// Remove finds what Kill could not end, so it has the last word.
	if err := m.Hypervisor.Remove(ctx, v.ID, m.dir(v.ID), v.Machine); err != nil {
		return errors.Join(killed, err)
	}
	return errors.Join(m.Disks.Detach(ctx, m.home(v.ID)), m.disconnect(ctx, v))
}

// markFailed records why a VM can't go on. Failing to record it leaves the VM in a state
// that recovery resolves.
func (m *Manager) markFailed(ctx context.Context, id string, reason error) {
	_, err := m.update(context.WithoutCancel(ctx), id, "failed", func(x *VM) error {
		if x.State == Suspended && x.Suspended { // what is kept of it is whole
			return x.To(Suspended, reason.Error())
		}
		return x.To(Failed, reason.Error())
	})
	if err != nil && errs.KindOf(err) != errs.NotFound {
		m.Log.Error("record that a VM failed", "vm", id, "reason", reason, "err", err)
	}
}
