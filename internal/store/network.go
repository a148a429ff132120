package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/netip"

	"banger/internal/vm"
)

// Readdress implements vm.Store. Addresses may change hands, so all are given up first.
func (s *Store) Readdress(ctx context.Context, to map[string]netip.Prefix) error {
	return s.tx(ctx, durable, func(tx *sql.Tx) error {
		for id := range to {
			if err := setAddress(ctx, tx, id, netip.Prefix{}); err != nil {
				return err
			}
		}
		for id, address := range to {
			if err := setAddress(ctx, tx, id, address); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, "UPDATE resources SET status = ? WHERE vm_id = ? AND kind = ?", vm.Pending, id, vm.KindNetwork)
			if err != nil {
				return fmt.Errorf("store the network of VM %s as pending: %w", id, err)
			}
		}
		return nil
	})
}

func setAddress(ctx context.Context, tx *sql.Tx, id string, address netip.Prefix) error {
	v, err := get(ctx, tx, id)
	if err != nil {
		return err
	}
	v.Address = address
	doc, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "UPDATE vms SET doc = ? WHERE id = ?", string(doc), id); err != nil {
		return fmt.Errorf("store the address of VM %s: %w", v.Name, err)
	}
	return nil
}

// Note implements vm.Store.
func (s *Store) Note(ctx context.Context, cause, reason string) error {
	return s.tx(ctx, durable, func(tx *sql.Tx) error {
		return event(ctx, tx, s.now(), vm.VM{Reason: reason}, "", noted, cause)
	})
}
