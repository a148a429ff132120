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
	held map[string]bool
}

func (l *leases) holds(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[id]
}

// OpenLease starts a lease and returns its id, for [Manager.EndLease].
func (m *Manager) OpenLease() string {
	id := rand.Text()
	m.leases.mu.Lock()
	defer m.leases.mu.Unlock()
	if m.leases.held == nil {
		m.leases.held = map[string]bool{}
	}
	m.leases.held[id] = true
	return id
}

// EndLease ends a lease and removes the VMs that were made under it. A creation under way
// either has its row by now, and is found here, or sees that the lease is gone.
func (m *Manager) EndLease(ctx context.Context, id string) error {
	m.leases.mu.Lock()
	delete(m.leases.held, id)
	m.leases.mu.Unlock()
	vms, err := m.Store.List(ctx)
	if err != nil {
		return err
	}
	for _, v := range vms {
		if v.Spec.Lease == id {
			err = errors.Join(err, m.Delete(ctx, v.ID, true))
		}
	}
	if errs.KindOf(err) == errs.NotFound { // the client had removed it itself
		return nil
	}
	return err
}
