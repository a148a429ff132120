package vm

import (
	"context"
	"errors"
	"time"

	"banger/internal/errs"
)

// mendLimit bounds how long a VM may take to come to rest after a verb that failed.
const mendLimit = 30 * time.Second

// mend brings a VM to rest that a verb left between two states when it failed, so that
// all verbs work on it again: what recovery does for a daemon that died. The VM's lock is
// held.
func (m *Manager) mend(ctx context.Context, id string, why error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), mendLimit)
	defer cancel()
	v, err := m.Store.Get(ctx, id)
	if errs.KindOf(err) == errs.NotFound {
		return
	}
	m.mu.Lock()
	r := m.running[id]
	m.mu.Unlock()
	switch {
	case err != nil:
	case v.State == Deleting: // whoever wanted that wants no machine either
		if err = m.removeMachine(ctx, v); err == nil {
			m.markFailed(ctx, id, why)
		}
	case v.State == Stopping && r != nil: // its guest goes on
		_, err = m.update(ctx, id, "not stopped", func(x *VM) error { return x.To(Running, "") }, Change{KindMachine, Live})
		err = errors.Join(err, m.agree(ctx, id, r))
	case v.State.HasMachine() && r == nil:
		_, err = m.settle(ctx, v, Stopped, "")
	}
	if err != nil {
		m.Log.Error("bring a VM to rest after a verb that failed", "vm", id, "verb", why, "err", err)
	}
}
