package vm

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"banger/internal/errs"
	"banger/internal/hypervisor"
)

const (
	// recoverers is how many VMs are settled side by side: most wait for a socket or the disk.
	recoverers = 16

	// recoverPatience is how long Recover waits for all VMs. One whose machine answers later,
	// on an overloaded host say, keeps its lock until then.
	recoverPatience = 4 * time.Second

	// recoverLimit bounds the recovery of one VM: its machine's monitor answers in
	// milliseconds, on an overloaded host in seconds.
	recoverLimit = 60 * time.Second
)

// Recover settles every VM as the last daemon left it: living machines are adopted, what
// was in between is finished or rolled back. It is called once, before any verb. It returns
// when that is done or has taken too long to wait for; what is left then goes on.
func (m *Manager) Recover(ctx context.Context) error {
	vms, err := m.Store.List(ctx)
	if err != nil {
		return err
	}
	unlocks := make([]func(), len(vms))
	for i, v := range vms { // before any verb can: nobody else knows of the locks yet
		if unlocks[i], err = m.locks.Lock(ctx, v.ID, "recovered"); err != nil {
			return err
		}
	}
	if err := m.clearStages(); err != nil {
		m.Log.Error("remove what templates that were never finished have left", "err", err)
	}
	if err := m.restoreNetwork(ctx, vms); err != nil {
		m.Log.Error("restore the network of running VMs", "err", err) // the census and the doctor say what is lacking
	}
	var (
		slots = make(chan struct{}, recoverers)
		all   = make([]error, len(vms))
		wg    sync.WaitGroup
		done  = make(chan struct{})
	)
	for i, v := range vms {
		wg.Add(1)
		m.watchers.Go(func() {
			defer wg.Done()
			defer unlocks[i]()
			slots <- struct{}{}
			defer func() { <-slots }()
			if all[i] = m.recoverVM(m.ctx, v); all[i] != nil && m.ctx.Err() == nil {
				m.markFailed(m.ctx, v.ID, all[i])
			}
		})
	}
	go func() {
		wg.Wait()
		// The budget may have been lowered, and what lay on a template be gone by now.
		if err := m.EvictTemplates(m.ctx, ""); err != nil {
			m.Log.Warn("keep templates within their budget", "err", err)
		}
		close(done)
	}()
	patience := time.NewTimer(recoverPatience)
	defer patience.Stop()
	select {
	case <-done:
		return errors.Join(all...)
	case <-patience.C:
		m.Log.Warn("some machines take long to answer; their VMs stay locked until they do")
		return nil
	}
}

// recoverVM settles one VM, whose lock is held.
func (m *Manager) recoverVM(ctx context.Context, v VM) error {
	ctx, cancel := context.WithTimeout(ctx, recoverLimit)
	defer cancel()
	if err := m.Dirs.Save(v); err != nil { // the last daemon may have died before it could
		m.Log.Warn("keep a copy of a VM's row", "vm", v.ID, "err", err)
	}
	if !v.Suspended { // what is kept may be half saved, or older than its disk
		if err := m.Dirs.DropKept(v.ID); err != nil {
			m.Log.Warn("drop what was kept of a machine", "vm", v.ID, "err", err)
		}
	}
	switch {
	case v.State == Creating:
		return m.remove(ctx, v.ID, "its creation was cut short")
	case v.State == Deleting:
		return m.remove(ctx, v.ID, "its removal was cut short")
	case v.Spec.Lease != "":
		return m.remove(ctx, v.ID, "its client went with the last daemon")
	case v.State == Stopping:
		_, err := m.settle(ctx, v, Stopped, "")
		return err
	case v.State.HasMachine():
		return m.adopt(ctx, v)
	case v.State == Suspended && !v.Suspended: // it was being resumed, and its guest may run
		resumed, err := m.update(ctx, v.ID, "resume", func(x *VM) error { return x.To(Running, "its resume was cut short") })
		if err != nil {
			return err
		}
		return m.adopt(ctx, resumed)
	}
	left, err := m.hasMachine(ctx, v)
	if err != nil || !left {
		return err
	}
	return m.removeMachine(ctx, v) // a start was cut short
}

// adopt takes charge of the machine of a running VM, or settles the VM if it is gone.
func (m *Manager) adopt(ctx context.Context, v VM) error {
	if v.Machine == nil {
		_, err := m.settle(ctx, v, Failed, "its machine was lost")
		return err
	}
	if v.Machine.Process.BootID != m.Host.BootID {
		return m.afterReboot(ctx, v)
	}
	machine, err := m.Hypervisor.Adopt(ctx, *v.Machine)
	switch {
	case err == nil:
		return m.takeOver(ctx, v, machine)
	case errs.KindOf(err) == errs.NotFound:
		_, err := m.settle(ctx, v, Stopped, "its machine ended while the daemon was away")
		return err
	case errors.Is(err, context.DeadlineExceeded): // it lives: its process was found
		m.Log.Warn("a machine does not answer", "vm", v.ID, "name", v.Name, "err", err)
		m.watchers.Go(func() { m.adoptLate(v.ID, *v.Machine) })
		_, err := m.update(context.WithoutCancel(ctx), v.ID, "silent", func(x *VM) error {
			return x.To(x.State, "its machine does not answer; banger kill "+x.Name+" ends it")
		})
		return err
	}
	return err
}

// takeOver makes an adopted machine that of v, whose lock is held.
func (m *Manager) takeOver(ctx context.Context, v VM, machine hypervisor.Machine) error {
	select {
	case <-machine.Halts(): // which it is about to try again
	default:
	}
	// A crash may have come before it was so, or while the machine was saved.
	agree := machine.Resume
	if v.State == Paused {
		agree = machine.Pause
	}
	if err := agree(ctx); err != nil {
		return errors.Join(err, machine.Close())
	}
	m.watch(v.ID, &running{machine: machine, connect: m.Reconnect, reconnect: m.Reconnect})
	if err := m.finishMove(ctx, v); err != nil {
		m.Log.Warn("finish what a move to another subnet began", "vm", v.ID, "err", err)
	}
	return nil
}

// adoptLate adopts a machine that has not answered in time, as soon as it does, unless a verb
// has ended it by then. Its VM is not locked meanwhile.
func (m *Manager) adoptLate(id string, rec hypervisor.Record) {
	for m.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(m.ctx, recoverLimit)
		machine, err := m.Hypervisor.Adopt(ctx, rec)
		if err == nil || errs.KindOf(err) == errs.NotFound {
			if err = m.settleLate(ctx, id, rec, machine); err == nil {
				cancel()
				return
			}
		}
		cancel()
		m.Log.Warn("adopt a machine that did not answer", "vm", id, "err", err)
		select {
		case <-time.After(endedAgain):
		case <-m.ctx.Done():
		}
	}
}

// settleLate gives a machine that has answered at last, or is nil if it has ended, to its VM,
// if that is still waiting for it.
func (m *Manager) settleLate(ctx context.Context, id string, rec hypervisor.Record, machine hypervisor.Machine) error {
	letGo := func() error {
		if machine == nil {
			return nil
		}
		return machine.Close()
	}
	v, unlock, err := m.lock(ctx, id, "recovered")
	if errs.KindOf(err) == errs.NotFound {
		return letGo()
	}
	if err != nil {
		return errors.Join(err, letGo())
	}
	defer unlock()
	_, err = m.machineOf(v)
	switch waits := errs.KindOf(err) == errs.Busy && v.Machine != nil && *v.Machine == rec; {
	case !waits:
		return letGo()
	case machine == nil:
		_, err := m.settle(ctx, v, Stopped, "its machine ended and had not answered")
		return err
	}
	if v, err = m.update(ctx, id, "answers again", func(x *VM) error { return x.To(x.State, "") }); err != nil {
		return errors.Join(err, machine.Close())
	}
	return m.takeOver(ctx, v, machine)
}

// afterReboot settles a VM that ran when the host went down.
func (m *Manager) afterReboot(ctx context.Context, v VM) error {
	v, err := m.settle(ctx, v, Stopped, "the host was restarted")
	if err == nil && v.Spec.Autostart && v.State == Stopped { // and not removed
		m.Autostart(v.ID)
	}
	return err
}

// Rebuild fills a store that has been lost from the copies of its rows in the VMs'
// directories. It returns the names of the VMs that are known again, and those directories
// that tell of none, which stay as they are. It is called before Recover, and once more by
// the next daemon if this one dies before it has been through.
func (m *Manager) Rebuild(ctx context.Context) (restored, unreadable []string, err error) {
	saved, unreadable, err := m.Dirs.Saved()
	if err != nil {
		return nil, unreadable, err
	}
	for _, v := range saved {
		switch _, err := m.Store.Get(ctx, v.ID); {
		case err == nil:
			continue
		case errs.KindOf(err) != errs.NotFound:
			return restored, unreadable, err
		}
		// A copy may be older than the row was: Recover looks for what each could have, and its
		// guest may have written to its disk.
		v.Pristine, v.Suspended = false, false
		owns := []Change{{KindDirectory, Live}, {KindDisk, Live}, {KindAttached, Live}, {KindMachine, Live}}
		if v.Spec.Net == NetBridge {
			owns = append(owns, Change{KindNetwork, Live})
		}
		if _, err := m.Disks.Usage(v.Disk); errs.KindOf(err) == errs.NotFound { // its removal had begun
			owns[1].Status = Pending
		}
		err := m.Store.Restore(ctx, v, owns...)
		if errors.Is(err, ErrAddressTaken) { // it was free again when the next VM took it
			v.Address = netip.Prefix{} // its next start gives it another
			err = m.Store.Restore(ctx, v, owns...)
		}
		if errs.KindOf(err) == errs.Conflict { // a name that was free again when the next VM took it
			v.Name = shorten(v.Name) + "-" + v.ID
			err = m.Store.Restore(ctx, v, owns...)
		}
		if err != nil {
			return restored, unreadable, err
		}
		restored = append(restored, v.Name)
	}
	return restored, unreadable, nil
}

// shorten leaves room in a name for an id behind it.
func shorten(name string) string { return name[:min(len(name), 63-1-12)] }
