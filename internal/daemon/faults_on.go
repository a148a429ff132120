//go:build faults

package daemon

import (
	"context"
	"net"

	"banger/internal/disk"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/vm"
)

// withFaults puts a door before and behind everything that a manager does to the store, to
// disks, directories and machines, and to guests: each is a step that can be made to fail
// and after which, or before which, the daemon can be made to die.
func withFaults(c vm.Config) vm.Config {
	c.Store, c.Disks, c.Dirs, c.Hypervisor = faultyStore{c.Store}, faultyDisks{c.Disks}, faultyDirs{c.Dirs}, faultyVMM{c.Hypervisor}
	c.Connect, c.Reconnect = faultyConnect(c.Connect), faultyConnect(c.Reconnect)
	return c
}

// step takes one step between two doors.
func step[T any](label string, do func() (T, error)) (T, error) {
	if err := host.Fault("before " + label); err != nil {
		var none T
		return none, err
	}
	v, err := do()
	if err == nil {
		err = host.Fault("after " + label)
	}
	return v, err
}

func act(label string, do func() error) error {
	_, err := step(label, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

type faultyStore struct{ vm.Store }

func (s faultyStore) Create(ctx context.Context, v vm.VM, pending ...vm.Kind) error {
	return act("store create", func() error { return s.Store.Create(ctx, v, pending...) })
}

func (s faultyStore) Update(ctx context.Context, id, cause string, change func(*vm.VM) error, resources ...vm.Change) (vm.VM, error) {
	return step("store "+cause, func() (vm.VM, error) { return s.Store.Update(ctx, id, cause, change, resources...) })
}

func (s faultyStore) Delete(ctx context.Context, id, cause string, gone ...vm.Kind) error {
	return act("store delete", func() error { return s.Store.Delete(ctx, id, cause, gone...) })
}

type faultyDisks struct{ vm.Disks }

func (d faultyDisks) Clone(ctx context.Context, driver string, base disk.Base, spec disk.Spec) (disk.Volume, error) {
	return step("disk clone", func() (disk.Volume, error) { return d.Disks.Clone(ctx, driver, base, spec) })
}

func (d faultyDisks) Attach(ctx context.Context, home disk.Home, v disk.Volume) (disk.Attached, error) {
	return step("disk attach", func() (disk.Attached, error) { return d.Disks.Attach(ctx, home, v) })
}

func (d faultyDisks) Detach(ctx context.Context, home disk.Home) error {
	return act("disk detach", func() error { return d.Disks.Detach(ctx, home) })
}

func (d faultyDisks) Remove(ctx context.Context, home disk.Home) error {
	return act("disk remove", func() error { return d.Disks.Remove(ctx, home) })
}

type faultyDirs struct{ vm.Dirs }

func (d faultyDirs) Make(id string) error {
	return act("directory make", func() error { return d.Dirs.Make(id) })
}

func (d faultyDirs) Save(v vm.VM) error {
	return act("directory save", func() error { return d.Dirs.Save(v) })
}

func (d faultyDirs) Remove(id string) error {
	return act("directory remove", func() error { return d.Dirs.Remove(id) })
}

type faultyVMM struct{ vm.Hypervisor }

func (h faultyVMM) Launch(ctx context.Context, spec hypervisor.MachineSpec) (hypervisor.Machine, error) {
	m, err := step("machine launch", func() (hypervisor.Machine, error) { return h.Hypervisor.Launch(ctx, spec) })
	if err != nil && m != nil { // it was launched, and its launcher failed after that
		err = endLaunched(ctx, m, err)
		return nil, err
	}
	return m, err
}

func (h faultyVMM) Adopt(ctx context.Context, rec hypervisor.Record) (hypervisor.Machine, error) {
	m, err := step("machine adopt", func() (hypervisor.Machine, error) { return h.Hypervisor.Adopt(ctx, rec) })
	if err != nil && m != nil {
		m.Close()
		return nil, err
	}
	return m, err
}

func (h faultyVMM) Remove(ctx context.Context, vmid, dir string, rec *hypervisor.Record) error {
	return act("machine remove", func() error { return h.Hypervisor.Remove(ctx, vmid, dir, rec) })
}

// endLaunched keeps what [hypervisor.Hypervisor] promises of a launch that fails.
func endLaunched(ctx context.Context, m hypervisor.Machine, err error) error {
	if kerr := m.Kill(ctx); kerr != nil {
		return kerr
	}
	m.Close()
	return err
}

func faultyConnect(connect vm.Connect) vm.Connect {
	return func(ctx context.Context, dial func(context.Context) (net.Conn, error)) (vm.Guest, error) {
		g, err := step("guest connect", func() (vm.Guest, error) { return connect(ctx, dial) })
		if err != nil {
			if g != nil {
				g.Close()
			}
			return nil, err
		}
		return faultyGuest{g}, nil
	}
}

type faultyGuest struct{ vm.Guest }

func (g faultyGuest) Call(ctx context.Context, method string, params, result any) error {
	return act("guest "+method, func() error { return g.Guest.Call(ctx, method, params, result) })
}
