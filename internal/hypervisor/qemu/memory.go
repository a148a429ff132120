package qemu

import (
	"context"
	"strings"
	"sync"
	"time"

	"banger/internal/disk/loop"
	"banger/internal/hypervisor"
)

// memories are the devices by which confined machines see the memory that they go on from.
// What they read stays with a device for as long as that is there: one is kept for a while
// after a start, so that the next one need not read it all again.
type memories struct {
	loops loop.Loops

	mu   sync.Mutex
	kept map[string]*kept // by the file's path
}

type kept struct {
	device *loop.Device
	until  *time.Timer
}

const keepMemory = 30 * time.Second

// guardMemory gives the memory that a confined machine goes on from as a read-only loop
// device, until release is called; a machine that has opened it keeps it. QEMU 7.2 opens that
// for writing though it only ever writes to copies of its pages, and with a file that would be
// the right to change what other machines go on from.
func (h *Hypervisor) guardMemory(ctx context.Context, spec hypervisor.MachineSpec) (_ hypervisor.MachineSpec, release func() error, err error) {
	if !spec.Jailed || spec.From == nil {
		return spec, func() error { return nil }, nil
	}
	memory, err := h.memories.loops.OpenShared(ctx, spec.From.Memory, loop.Cached)
	if err != nil {
		return spec, nil, err
	}
	if !strings.HasPrefix(spec.From.Memory, spec.Dir+"/") { // its own, which is gone on from once
		h.memories.keep(ctx, spec.From.Memory)
	}
	spec.From = &hypervisor.Saved{Memory: memory.Path(), State: spec.From.State}
	return spec, memory.Close, nil
}

// keep has the device of a file, which is there, stay for a while. Without, it goes with its users.
func (m *memories) keep(ctx context.Context, path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.kept[path]; k != nil && k.until.Stop() {
		k.until.Reset(keepMemory)
		return
	}
	device, err := m.loops.OpenShared(ctx, path, loop.Cached)
	if err != nil {
		return
	}
	if m.kept == nil {
		m.kept = map[string]*kept{}
	}
	k := &kept{device: device}
	k.until = time.AfterFunc(keepMemory, func() { m.drop(path, k) })
	m.kept[path] = k
}

func (m *memories) drop(path string, k *kept) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kept[path] == k {
		delete(m.kept, path)
	}
	k.device.Close()
}
