package vm

import (
	"context"
	"errors"
	"sync"
	"time"

	"banger/internal/errs"
)

// recoverers is how many VMs are settled side by side: most wait for a socket or the disk.
const recoverers = 8

// recoverLimit bounds the recovery of one VM: its machine's monitor answers in
// milliseconds, on an overloaded host in seconds.
const recoverLimit = 30 * time.Second

// Recover settles every VM as the last daemon left it: living machines are adopted, what
// was in between is finished or rolled back. It is called once, before any verb.
func (m *Manager) Recover(ctx context.Context) error {
	vms, err := m.Store.List(ctx)
	if err != nil {
		return err
	}
	var (
		wg    sync.WaitGroup
		slots = make(chan struct{}, recoverers)
		all   = make([]error, len(vms))
	)
	for i, v := range vms {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if all[i] = m.recoverVM(ctx, v); all[i] != nil {
				m.markFailed(ctx, v.ID, all[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(all...)
}

func (m *Manager) recoverVM(ctx context.Context, v VM) error {
	ctx, cancel := context.WithTimeout(ctx, recoverLimit)
	defer cancel()
	_, unlock, err := m.lock(ctx, v.ID, "recovered")
	if err != nil {
		return err
	}
	defer unlock()
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
	}
	resources, err := m.Store.Resources(ctx, v.ID)
	if err != nil {
		return err
	}
	for _, r := range resources {
		if r.Kind == KindMachine { // a start was cut short
			return m.removeMachine(ctx, v)
		}
	}
	return nil
}

// adopt takes charge of the machine of a running VM, or settles the VM if it is gone.
func (m *Manager) adopt(ctx context.Context, v VM) error {
	if v.Machine == nil {
		_, err := m.settle(ctx, v, Failed, "its machine was lost")
		return err
	}
	machine, err := m.Hypervisor.Adopt(ctx, *v.Machine)
	switch {
	case err == nil && v.State == Paused: // a crash may have come before it was
		if err := machine.Pause(ctx); err != nil {
			return err
		}
		fallthrough
	case err == nil:
		m.watch(v.ID, &running{machine: machine, connect: m.Reconnect, reconnect: m.Reconnect})
		return nil
	case errs.KindOf(err) == errs.NotFound:
		_, err := m.settle(ctx, v, Stopped, "its machine ended while the daemon was away, or the host was restarted")
		return err
	}
	return err
}
