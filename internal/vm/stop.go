package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"banger/internal/errs"
	"banger/internal/guest/proto"
	"banger/internal/op"
)

// StopLimit is how long a guest may take to power off, unless the caller says otherwise.
const StopLimit = 60 * time.Second

// Stop powers the VM off: its guest is asked, and killed if it takes longer than limit.
// The disk stays. A VM that is to be removed when it stops is removed.
func (m *Manager) Stop(ctx context.Context, o *op.Operation, id string, limit time.Duration) (VM, error) {
	v, unlock, err := m.lock(ctx, id, "stopped")
	if err != nil {
		return VM{}, err
	}
	defer unlock()
	return m.stop(ctx, o, v, limit)
}

// stop is Stop with v's lock held.
func (m *Manager) stop(ctx context.Context, o *op.Operation, v VM, limit time.Duration) (VM, error) {
	return m.stopAnd(ctx, o, v, limit, func(ctx context.Context, v VM, _ error) (VM, error) { return m.settle(ctx, v, Stopped, "") })
}

// errTorn is part of why a guest was killed: its disk lacks some of what it has written.
var errTorn = errors.New("and what it had not written to its disk is lost")

// stopAnd is stop with what is done with a VM that has been powered off, or killed, which
// the function is then told the reason of.
func (m *Manager) stopAnd(ctx context.Context, o *op.Operation, v VM, limit time.Duration,
	settle func(ctx context.Context, v VM, killed error) (VM, error)) (_ VM, err error) {
	id := v.ID
	defer func() {
		if err != nil {
			m.mend(ctx, id, err)
		}
	}()
	r, err := m.machineOf(v)
	if err != nil {
		if v.State == Suspended {
			o.Warn(fmt.Sprintf("VM %s is suspended, and stays so; banger start --fresh %s gives up what it has in memory", v.Name, v.Name))
		}
		return m.stopWithout(ctx, v, err)
	}
	paused := v.State == Paused
	if v, err = m.update(ctx, id, "stop", func(x *VM) error { return x.To(Stopping, "") }); err != nil {
		return v, err
	}
	var killed error
	if limit > 0 && paused { // a paused guest can't hear
		if err := r.machine.Resume(ctx); err != nil {
			o.Warn(fmt.Sprintf("VM %s could not be resumed, so it is killed: %v", v.Name, err))
			limit, killed = 0, fmt.Errorf("%w, %w", err, errTorn)
		}
	}
	if limit > 0 {
		o.Stage("waiting for the guest to power off", 0, 0)
		if killed = m.powerOff(ctx, r, limit); killed != nil {
			o.Warn(fmt.Sprintf("VM %s did not power off, so it was killed: %v", v.Name, killed))
		}
	}
	// From here on there is no way back: a caller that leaves changes nothing.
	return settle(context.WithoutCancel(ctx), v, killed)
}

// stopWithout stops a VM of whose machine nothing is known, and why. Since v's lock is held
// it is not being recovered: an earlier verb came to grief half way, and this one ends it.
func (m *Manager) stopWithout(ctx context.Context, v VM, why error) (VM, error) {
	switch {
	case v.State == Stopped || v.State == Suspended:
		return v, nil
	case v.State.HasMachine():
		return m.settle(context.WithoutCancel(ctx), v, Stopped, "")
	case v.State != Failed:
		return v, why
	case v.Spec.AutoRemove || v.Spec.Lease != "":
		return v, m.remove(context.WithoutCancel(ctx), v.ID, "it stopped")
	}
	// It stays failed, for the same reason: its disk may be half removed.
	left, err := m.hasMachine(ctx, v)
	if err != nil || !left {
		return v, err
	}
	err = m.removeMachine(context.WithoutCancel(ctx), v)
	if err == nil {
		v.Machine = nil
	}
	return v, err
}

// hasMachine tells whether there may be anything of a machine of v's on the host.
func (m *Manager) hasMachine(ctx context.Context, v VM) (bool, error) {
	resources, err := m.Store.Resources(ctx, v.ID)
	return slices.ContainsFunc(resources, func(r Resource) bool { return slices.Contains([]Kind{KindMachine, KindAttached, KindNetwork}, r.Kind) }), err
}

// Restart stops a running VM as Stop does and starts it again; a stopped one it starts.
// Nobody else gets at the VM in between.
func (m *Manager) Restart(ctx context.Context, o *op.Operation, id string, limit time.Duration, wait Wait) (VM, error) {
	begin := time.Now()
	if err := wait.check(); err != nil {
		return VM{}, err
	}
	v, unlock, err := m.lock(ctx, id, "restarted")
	if err != nil {
		return VM{}, err
	}
	defer unlock()
	if v.Spec.AutoRemove || v.Spec.Lease != "" {
		return v, errs.New(errs.Conflict, "VM %s is removed when it stops, so it can't be restarted", v.Name)
	}
	if v.State == Suspended { // its guest can't be asked to end
		return v, errs.New(errs.Conflict, "VM %s is suspended, so it can't be restarted", v.Name).
			Try("resume it first: banger resume %s; or boot it from its disk: banger start --fresh %s", v.Name, v.Name)
	}
	if v.State.HasMachine() {
		if v, err = m.stop(ctx, o, v, limit); err != nil {
			return v, err
		}
	}
	return m.start(ctx, o, v, begin, wait, "")
}

// powerOff asks the guest to end and waits until the machine has. errTorn if it has to be killed as it is.
func (m *Manager) powerOff(ctx context.Context, r *running, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	g, err := r.channel(ctx)
	if err == nil {
		err = g.Call(ctx, proto.MethodShutdown, proto.Shutdown{}, nil)
	}
	if err != nil && ctx.Err() == nil {
		return freeze(ctx, r, err)
	}
	select {
	case <-r.machine.Done():
		return nil
	case <-ctx.Done():
	}
	err = ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("it was still running after %v", limit)
	}
	return freeze(ctx, r, err)
}

// freezeLimit bounds how long a guest that is about to be killed may take to bring its
// filesystem into order.
const freezeLimit = 2 * time.Second

// freeze has a guest that will not power off, and why, write out what it has and hold still, so that
// it can be killed without loss. One that does not even do that is past helping: errTorn.
func freeze(ctx context.Context, r *running, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freezeLimit)
	defer cancel()
	g, err := r.channel(ctx)
	if err == nil {
		err = g.Call(ctx, proto.MethodFreeze, nil, nil)
	}
	select {
	case <-r.machine.Done(): // it has powered off after all, which broke the call off
		return nil
	default:
	}
	if err != nil {
		return fmt.Errorf("%w, %w", why, errTorn)
	}
	return why
}

// settle removes what is left of v's machine and brings v to rest in the state given, or
// removes it altogether if that was asked for. v's lock is held.
func (m *Manager) settle(ctx context.Context, v VM, state State, reason string) (VM, error) {
	if !v.Spec.AutoRemove && v.Spec.Lease == "" {
		return m.rest(ctx, v, state, reason)
	}
	if err := m.removeMachine(ctx, v); err != nil {
		m.markFailed(ctx, v.ID, err)
		return v, err
	}
	return v, m.remove(ctx, v.ID, "it stopped")
}

// rest is settle of a VM that stays, whatever was asked for.
func (m *Manager) rest(ctx context.Context, v VM, state State, reason string) (VM, error) {
	if err := m.removeMachine(ctx, v); err != nil {
		m.markFailed(ctx, v.ID, err)
		return v, err
	}
	return m.update(ctx, v.ID, "stopped", func(x *VM) error {
		x.StoppedAt = time.Now().UTC()
		return x.To(state, reason)
	})
}

// watch keeps the machine of a running VM in sight: when it ends by itself the VM settles.
func (m *Manager) watch(id string, r *running) {
	m.mu.Lock()
	m.running[id] = r
	m.mu.Unlock()
	m.watchers.Go(func() {
		for {
			select {
			case why := <-r.machine.Halts():
				if err := m.halted(id, r, why); err != nil {
					m.Log.Error("record that a machine has halted", "vm", id, "reason", why, "err", err)
				}
				continue
			case <-r.machine.Done():
			case <-m.ctx.Done():
				return
			}
			break
		}
		m.settleEnded(id, r)
	})
}

// endedAgain is how long after a failure, of a store on a full disk say, a VM whose machine
// has ended is tried to settle again: it must not be shown as running for ever.
const endedAgain = time.Second

// settleEnded settles a VM whose machine is gone, however often it takes.
func (m *Manager) settleEnded(id string, r *running) {
	for again := false; ; again = true {
		err := m.ended(id, r, again)
		if err == nil {
			return
		}
		m.Log.Error("settle a VM whose machine ended", "vm", id, "err", err)
		select {
		case <-time.After(endedAgain):
		case <-m.ctx.Done():
			return
		}
	}
}

// ended settles a VM whose machine is gone, unless the verb that ended it does so itself.
// again says that it was tried before.
func (m *Manager) ended(id string, r *running, again bool) error {
	ctx := m.ctx
	v, unlock, err := m.lock(ctx, id, "settled after its machine ended")
	if errs.KindOf(err) == errs.NotFound || ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	m.mu.Lock()
	now := m.running[id]
	m.mu.Unlock()
	if now != r && !(again && now == nil && v.State.HasMachine()) {
		return nil
	}
	exit := r.machine.Exit()
	state := Failed
	if exit.Clean {
		state = Stopped
	}
	m.Log.Info("machine ended", "vm", id, "name", v.Name, "reason", exit.Reason)
	_, err = m.settle(ctx, v, state, exit.Reason)
	return err
}
