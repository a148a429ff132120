package store

import (
	"slices"
	"sync"

	"banger/internal/vm"
)

// cache keeps the list of all VMs between two changes: reading a thousand rows takes a
// hundred times as long as handing them out. The zero value is ready. Nobody else writes
// to the database, which one daemon has to itself.
type cache struct {
	mu      sync.Mutex
	changes int // how often it was dropped
	known   bool
	vms     []vm.VM
}

// get returns the list, read anew if it has been dropped. The slice is the caller's; what
// its elements point to is for reading only.
func (c *cache) get(read func() ([]vm.VM, error)) ([]vm.VM, error) {
	c.mu.Lock()
	if c.known {
		defer c.mu.Unlock()
		return slices.Clone(c.vms), nil
	}
	before := c.changes
	c.mu.Unlock()
	vms, err := read()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changes == before { // a change came meanwhile otherwise
		c.known, c.vms = true, slices.Clone(vms)
	}
	return vms, nil
}

// drop is called after each change.
func (c *cache) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	c.known, c.vms = false, nil
}
