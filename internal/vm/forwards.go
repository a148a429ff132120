package vm

import (
	"context"
	"slices"

	"banger/internal/errs"
	"banger/internal/hypervisor"
	"banger/internal/network"
)

func parseForwards(texts []string) (all []network.Forward, err error) {
	for _, text := range texts {
		f, err := network.ParseForward(text)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

// addForwards adds to forwards, of which no two may want the same port of the host's.
func addForwards(have, more []network.Forward) ([]network.Forward, error) {
	all := slices.Clone(have)
	for _, f := range more {
		if slices.Contains(all, f) {
			continue
		}
		if i := slices.IndexFunc(all, f.Clashes); i >= 0 {
			return nil, errs.New(errs.Conflict, "%s wants the same port of this host as %s", f, all[i])
		}
		all = append(all, f)
	}
	return all, nil
}

// ChangeForwards adds forwards to a VM and removes others, at once if it runs. Adding what is
// there changes nothing; removing what is not is errs.NotFound.
func (m *Manager) ChangeForwards(ctx context.Context, id string, add, remove []string) (VM, error) {
	more, err := parseForwards(add)
	if err != nil {
		return VM{}, err
	}
	less, err := parseForwards(remove)
	if err != nil {
		return VM{}, err
	}
	v, unlock, err := m.lock(ctx, id, "changed")
	if err != nil {
		return VM{}, err
	}
	defer unlock()
	if v.Spec.Net == NetNone {
		return v, noForwards()
	}
	want := slices.Clone(v.Spec.Forwards)
	for _, f := range less {
		i := slices.Index(want, f)
		if i < 0 {
			return v, errs.New(errs.NotFound, "VM %s does not forward %s", v.Name, f).Try("banger port %s shows what it forwards", v.Name)
		}
		want = slices.Delete(want, i, i+1)
	}
	if want, err = addForwards(want, more); err != nil {
		return v, err
	}
	if v.State.HasMachine() {
		if err := m.forward(ctx, v, want); err != nil {
			return v, err
		}
	}
	return m.update(context.WithoutCancel(ctx), id, "ports", func(x *VM) error {
		x.Spec.Forwards = want
		return nil
	})
}

// forward has exactly these forwards be open for a VM that runs. If it fails those that were
// open still are.
func (m *Manager) forward(ctx context.Context, v VM, want []network.Forward) error {
	if v.Spec.Net == NetBridge {
		return m.Network.Forward(ctx, v.ID, want)
	}
	r, err := m.machineOf(v)
	if err != nil {
		return err
	}
	had := v.Spec.Forwards
	fresh := slices.DeleteFunc(slices.Clone(want), func(f network.Forward) bool { return slices.Contains(had, f) })
	old := slices.DeleteFunc(slices.Clone(had), func(f network.Forward) bool { return slices.Contains(want, f) })
	if err := openForwards(ctx, r.machine, fresh); err != nil {
		return err
	}
	for _, f := range old {
		if err := r.machine.Forward(ctx, hypervisor.Forward(f), false); err != nil {
			return err
		}
	}
	return nil
}

// openForwards has the VMM's own network stack forward ports: all of them or none.
func openForwards(ctx context.Context, machine hypervisor.Machine, forwards []network.Forward) error {
	for i, f := range forwards {
		err := network.TryListen(f) // for the VMM can't say why it could not
		if err == nil {
			err = machine.Forward(ctx, hypervisor.Forward(f), true)
		}
		if err != nil {
			for _, f := range forwards[:i] {
				_ = machine.Forward(context.WithoutCancel(ctx), hypervisor.Forward(f), false) // the first error tells
			}
			return err
		}
	}
	return nil
}

// forwardAll opens the forwards of a VM that was just launched; on the bridge they are.
func forwardAll(ctx context.Context, v VM, machine hypervisor.Machine) error {
	if v.Spec.Net != NetUser {
		return nil
	}
	return openForwards(ctx, machine, v.Spec.Forwards)
}
