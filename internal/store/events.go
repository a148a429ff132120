package store

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"banger/internal/vm"
)

// keepEvents is how many events stay to be asked for. Their numbers go on growing.
const keepEvents = 100_000

// news wakes those who wait for events. The zero value is ready.
type news struct {
	mu      sync.Mutex
	changed chan struct{}
}

// Changed implements vm.Store.
func (n *news) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changed == nil {
		n.changed = make(chan struct{})
	}
	return n.changed
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changed != nil {
		close(n.changed)
		n.changed = nil
	}
}

// Events implements vm.Store.
func (s *Store) Events(ctx context.Context, after int64, limit int) ([]vm.Event, error) {
	rows, err := s.db.QueryContext(ctx,
		"SELECT seq, at, vm_id, name, was, state, cause, reason FROM events WHERE seq > ? ORDER BY seq LIMIT ?", after, limit)
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	defer rows.Close()
	var all []vm.Event
	for rows.Next() {
		var e vm.Event
		var at int64
		if err := rows.Scan(&e.Seq, &at, &e.VM, &e.Name, &e.From, &e.To, &e.Cause, &e.Reason); err != nil {
			return nil, fmt.Errorf("list events: %w", err)
		}
		e.At = time.UnixMicro(at).UTC()
		if e.To == removed || e.To == noted {
			e.To = ""
		}
		all = append(all, e)
	}
	return all, rows.Err()
}

// LastEvent implements vm.Store.
func (s *Store) LastEvent(ctx context.Context) (seq int64, err error) {
	if err := s.db.QueryRowContext(ctx, "SELECT ifnull(max(seq), 0) FROM events").Scan(&seq); err != nil {
		return 0, fmt.Errorf("read the last event: %w", err)
	}
	return seq, nil
}

const (
	removed = "removed" // stands in the table for the state of a VM that is gone
	noted   = "noted"   // and this for that of none
)

func event(ctx context.Context, tx *sql.Tx, at time.Time, v vm.VM, from, to vm.State, cause string) error {
	reason := v.Reason
	if to == "" {
		to, reason = removed, ""
	}
	_, err := tx.ExecContext(ctx, "INSERT INTO events (at, vm_id, name, was, state, cause, reason) VALUES (?, ?, ?, ?, ?, ?, ?)",
		at.UnixMicro(), v.ID, v.Name, from, to, cause, reason)
	if err == nil {
		_, err = tx.ExecContext(ctx, "DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?", keepEvents)
	}
	if err != nil {
		return fmt.Errorf("store an event of VM %s: %w", v.Name, err)
	}
	return nil
}
