// Package faults puts a door before and behind everything that a manager does to the store,
// to disks, directories and machines, and to guests. Each door is a step at which a test
// makes things fail, or ends the daemon. It knows nothing of what a test does there.
package faults

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"

	"banger/internal/disk"
	"banger/internal/hypervisor"
	bridge "banger/internal/network"
	"banger/internal/template"
	"banger/internal/vm"
)

// Door is asked before each step ("before store create") and once the step is done ("after
// store create"). Its error keeps the step from being taken, or is what the step then reports.
type Door func(label string) error

// Behind returns c with the door around all that has an effect.
func Behind(c vm.Config, door Door) vm.Config {
	c.Store, c.Disks, c.Dirs, c.Hypervisor = store{c.Store, door}, disks{c.Disks, door}, dirs{c.Dirs, door}, vmm{c.Hypervisor, door}
	c.Network, c.Templates = network{c.Network, door}, templates{c.Templates, door}
	c.Connect, c.Reconnect = door.connect(c.Connect), door.connect(c.Reconnect)
	return c
}

// step takes one step between two doors.
func step[T any](door Door, label string, do func() (T, error)) (T, error) {
	if err := door("before " + label); err != nil {
		var none T
		return none, err
	}
	v, err := do()
	if err == nil {
		err = door("after " + label)
	}
	return v, err
}

func (d Door) act(label string, do func() error) error {
	_, err := step(d, label, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

type store struct {
	vm.Store
	door Door
}

func (s store) Create(ctx context.Context, v vm.VM, pending ...vm.Kind) error {
	return s.door.act("store create", func() error { return s.Store.Create(ctx, v, pending...) })
}

func (s store) Update(ctx context.Context, id, cause string, change func(*vm.VM) error, resources ...vm.Change) (vm.VM, error) {
	return step(s.door, "store "+cause, func() (vm.VM, error) { return s.Store.Update(ctx, id, cause, change, resources...) })
}

// Intend syncs at once: steps taken side by side would be in no order.
func (s store) Intend(ctx context.Context, id, cause string, change func(*vm.VM) error, resources ...vm.Change) (vm.VM, func() error, error) {
	v, err := step(s.door, "store "+cause, func() (v vm.VM, err error) {
		var sync func() error
		if v, sync, err = s.Store.Intend(ctx, id, cause, change, resources...); err == nil {
			err = s.door.act("store sync", sync)
		}
		return v, err
	})
	return v, func() error { return nil }, err
}

func (s store) Delete(ctx context.Context, id, cause string, gone ...vm.Kind) error {
	return s.door.act("store delete", func() error { return s.Store.Delete(ctx, id, cause, gone...) })
}

func (s store) Restore(ctx context.Context, v vm.VM, resources ...vm.Change) error {
	return s.door.act("store restore", func() error { return s.Store.Restore(ctx, v, resources...) })
}

func (s store) Readdress(ctx context.Context, to map[string]netip.Prefix) error {
	return s.door.act("store readdress", func() error { return s.Store.Readdress(ctx, to) })
}

type disks struct {
	vm.Disks
	door Door
}

func (d disks) Clone(ctx context.Context, driver string, base disk.Base, spec disk.Spec) (disk.Volume, error) {
	return step(d.door, "disk clone", func() (disk.Volume, error) { return d.Disks.Clone(ctx, driver, base, spec) })
}

func (d disks) Copy(ctx context.Context, v disk.Volume, home disk.Home) (disk.Volume, error) {
	return step(d.door, "disk copy", func() (disk.Volume, error) { return d.Disks.Copy(ctx, v, home) })
}

func (d disks) Attach(ctx context.Context, home disk.Home, v disk.Volume) (disk.Attached, error) {
	return step(d.door, "disk attach", func() (disk.Attached, error) { return d.Disks.Attach(ctx, home, v) })
}

func (d disks) Detach(ctx context.Context, home disk.Home) error {
	return d.door.act("disk detach", func() error { return d.Disks.Detach(ctx, home) })
}

func (d disks) Remove(ctx context.Context, home disk.Home) error {
	return d.door.act("disk remove", func() error { return d.Disks.Remove(ctx, home) })
}

type dirs struct {
	vm.Dirs
	door Door
}

func (d dirs) Make(id string) error {
	return d.door.act("directory make", func() error { return d.Dirs.Make(id) })
}

func (d dirs) Save(v vm.VM) error {
	return d.door.act("directory save", func() error { return d.Dirs.Save(v) })
}

func (d dirs) Remove(id string) error {
	return d.door.act("directory remove", func() error { return d.Dirs.Remove(id) })
}

func (d dirs) Keep(id string) (memory, state *os.File, err error) {
	err = d.door.act("directory keep", func() error {
		memory, state, err = d.Dirs.Keep(id)
		return err
	})
	if err != nil && memory != nil { // they are there, and nobody will use them
		return nil, nil, errors.Join(err, memory.Close(), state.Close())
	}
	return memory, state, err
}

func (d dirs) Seal(id string) error {
	return d.door.act("directory seal", func() error { return d.Dirs.Seal(id) })
}

func (d dirs) DropKept(id string) error {
	return d.door.act("directory drop kept", func() error { return d.Dirs.DropKept(id) })
}

type network struct {
	vm.Network
	door Door
}

func (n network) Attach(ctx context.Context, p bridge.Port) (*os.File, error) {
	f, err := step(n.door, "network attach", func() (*os.File, error) { return n.Network.Attach(ctx, p) })
	if err != nil && f != nil { // the port is there, and nobody will use it
		f.Close()
		return nil, err
	}
	return f, err
}

func (n network) Detach(ctx context.Context, id string) error {
	return n.door.act("network detach", func() error { return n.Network.Detach(ctx, id) })
}

func (n network) Forward(ctx context.Context, id string, want []bridge.Forward) error {
	return n.door.act("network forward", func() error { return n.Network.Forward(ctx, id, want) })
}

func (n network) Restore(ctx context.Context, ports []bridge.Port) error {
	return n.door.act("network restore", func() error { return n.Network.Restore(ctx, ports) })
}

type templates struct {
	vm.Templates
	door Door
}

func (t templates) Begin(name string) (*template.Stage, error) {
	st, err := step(t.door, "template begin", func() (*template.Stage, error) { return t.Templates.Begin(name) })
	if err != nil && st != nil {
		return nil, errors.Join(err, st.Discard())
	}
	return st, err
}

func (t templates) Commit(ctx context.Context, st *template.Stage, made template.Template) (template.Template, error) {
	return step(t.door, "template commit", func() (template.Template, error) { return t.Templates.Commit(ctx, st, made) })
}

func (t templates) Use(used template.Template) error {
	return t.door.act("template use", func() error { return t.Templates.Use(used) })
}

func (t templates) Retire(old template.Template) error {
	return t.door.act("template retire", func() error { return t.Templates.Retire(old) })
}

func (t templates) Remove(name string) error {
	return t.door.act("template remove", func() error { return t.Templates.Remove(name) })
}

type vmm struct {
	vm.Hypervisor
	door Door
}

func (h vmm) Launch(ctx context.Context, spec hypervisor.MachineSpec) (hypervisor.Machine, error) {
	m, err := step(h.door, "machine launch", func() (hypervisor.Machine, error) { return h.Hypervisor.Launch(ctx, spec) })
	if m == nil {
		return nil, err
	}
	if err != nil { // it was launched, and its launcher failed after that: nothing of it may stay
		return nil, errors.Join(err, machine{m, h.door}.Kill(ctx), m.Close())
	}
	return machine{m, h.door}, nil
}

func (h vmm) Adopt(ctx context.Context, rec hypervisor.Record) (hypervisor.Machine, error) {
	m, err := step(h.door, "machine adopt", func() (hypervisor.Machine, error) { return h.Hypervisor.Adopt(ctx, rec) })
	if m == nil {
		return nil, err
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return machine{m, h.door}, nil
}

func (h vmm) Remove(ctx context.Context, vmid, dir string, rec *hypervisor.Record) error {
	return h.door.act("machine remove", func() error { return h.Hypervisor.Remove(ctx, vmid, dir, rec) })
}

type machine struct {
	hypervisor.Machine
	door Door
}

func (m machine) Pause(ctx context.Context) error {
	return m.door.act("machine pause", func() error { return m.Machine.Pause(ctx) })
}

func (m machine) Resume(ctx context.Context) error {
	return m.door.act("machine resume", func() error { return m.Machine.Resume(ctx) })
}

func (m machine) Save(ctx context.Context, memory, state *os.File) error {
	return m.door.act("machine save", func() error { return m.Machine.Save(ctx, memory, state) })
}

func (m machine) Kill(ctx context.Context) error {
	return m.door.act("machine kill", func() error { return m.Machine.Kill(ctx) })
}

func (d Door) connect(connect vm.Connect) vm.Connect {
	return func(ctx context.Context, dial func(context.Context) (net.Conn, error)) (vm.Guest, error) {
		g, err := step(d, "guest connect", func() (vm.Guest, error) { return connect(ctx, dial) })
		if g == nil {
			return nil, err
		}
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		return guest{g, d}, nil
	}
}

type guest struct {
	vm.Guest
	door Door
}

func (g guest) Call(ctx context.Context, method string, params, result any) error {
	return g.door.act("guest "+method, func() error { return g.Guest.Call(ctx, method, params, result) })
}
