package vm_test

import (
	"context"
	"testing"

	"banger/internal/errs"
	"banger/internal/hypervisor"
	"banger/internal/op"
	"banger/internal/vm"
)

// The backend of a VM is settled when it is made, and is the same at every start.
func TestTheBackendIsSettledOnce(t *testing.T) {
	w := newWorld(t)
	w.net.choice = "10.98.0.0/24"
	m, end := w.daemon()
	defer end()
	for request, want := range map[string]hypervisor.Backend{
		"": hypervisor.QEMU, "auto": hypervisor.QEMU, "qemu": hypervisor.QEMU, "firecracker": hypervisor.Firecracker,
	} {
		v, err := create(t, m, vm.Request{Backend: request, Net: "bridge"})
		if err != nil {
			t.Fatal(err)
		}
		if v.Spec.Backend != want || v.Machine.Backend != want {
			t.Errorf("%q: the VM's backend is %q, its machine's %q", request, v.Spec.Backend, v.Machine.Backend)
		}
		if byName := w.net.ports[v.ID].ByName; byName != (want == hypervisor.Firecracker) {
			t.Errorf("%q: its TAP is opened by name: %v", request, byName)
		}
		_, err = operation(t, func(ctx context.Context, o *op.Operation) error {
			v, err = m.Restart(ctx, o, v.ID, 0, vm.WaitAgent)
			return err
		})
		if err != nil || v.Machine.Backend != want {
			t.Errorf("%q: after a restart its machine is %+v, %v", request, v.Machine, err)
		}
	}
}

// A backend that is not to be had leaves nothing of a VM.
func TestABackendThatIsNotThere(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	w.set(func() { w.fail = "firecracker" })
	if v, err := create(t, m, vm.Request{Backend: "firecracker"}); err == nil {
		t.Errorf("got %+v", v)
	}
	if _, err := create(t, m, vm.Request{Backend: "bochs"}); errs.KindOf(err) != errs.Invalid {
		t.Errorf("a backend that nobody knows: %v", err)
	}
	if vms, err := m.List(t.Context()); err != nil || len(vms) != 0 {
		t.Errorf("there are %v, %v", vms, err)
	}
}
