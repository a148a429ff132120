package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"

	"banger/internal/errs"
)

// leases are the promises of clients to be there: a VM made under one goes when it ends.
type leases struct {
	mu   sync.Mutex
	held map[string]lease
}

// lease is the time for which a client is there.
type lease struct {
	context.Context
	end context.CancelFunc
}

// within returns a ctx that also ends with the lease, and whether the lease has not ended yet.
func (l *leases) within(ctx context.Context, id string) (_ context.Context, release func(), held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	client, held := l.held[id]
	if !held {
		return ctx, func() {}, false
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(client, cancel)
	return ctx, func() { stop(); cancel() }, true
}

// isHeld tells whether a lease has not ended yet.
func (l *leases) isHeld(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, held := l.held[id]
	return held
}

// OpenLease starts a lease and returns its id, for [Manager.EndLease].
func (m *Manager) OpenLease() string {
	id := rand.Text()
	ctx, cancel := context.WithCancel(m.ctx)
	m.leases.mu.Lock()
	defer m.leases.mu.Unlock()
	if m.leases.held == nil {
		m.leases.held = map[string]lease{}
	}
	m.leases.held[id] = lease{ctx, cancel}
	return id
}

// EndLease ends a lease and removes the VMs that were made under it. A creation under way
// is cancelled; it either has its row by now, and is found here, or sees that the lease is
// gone.
func (m *Manager) EndLease(ctx context.Context, id string) error {
	m.leases.mu.Lock()
	if l, ok := m.leases.held[id]; ok {
		l.end()
	}
	delete(m.leases.held, id)
	m.leases.mu.Unlock()
	vms, err := m.Store.List(ctx)
	if err != nil {
		return err
	}
	for _, v := range vms {
		if v.Spec.Lease != id {
			continue
		}
		if gone := m.Delete(ctx, v.ID, true); errs.KindOf(gone) != errs.NotFound { // the client had removed it itself
			err = errors.Join(err, gone)
		}
	}
	return err
}
