package vm_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/op"
	"banger/internal/vm"
)

// poolWorld is a world that keeps n VMs ready.
func poolWorld(t *testing.T, n int) (*world, *vm.Manager) {
	t.Helper()
	w := newWorld(t)
	w.pool = vm.PoolSize{Images: map[string]int{"tiny": n}, Bytes: 1 << 30}
	m, end := w.daemon()
	t.Cleanup(end)
	if err := fillPool(t, m); err != nil {
		t.Fatal(err)
	}
	return w, m
}

func fillPool(t *testing.T, m *vm.Manager) error {
	t.Helper()
	_, err := operation(t, m.FillPool)
	return err
}

// pooled returns the VMs of the pool.
func pooled(t *testing.T, m *vm.Manager) []vm.VM {
	t.Helper()
	all, err := m.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(slices.Clone(all), func(v vm.VM) bool { return !v.Spec.Pooled })
}

// Who asks for a VM like one of the pool gets that, with what was asked for.
func TestAVMOfThePoolIsClaimed(t *testing.T) {
	w, m := poolWorld(t, 2)
	ready := pooled(t, m)
	if len(ready) != 2 || ready[0].State != vm.Paused || !w.machineOf(m, ready[0]).paused {
		t.Fatalf("the pool has %+v", ready)
	}
	if _, err := operation(t, func(ctx context.Context, o *op.Operation) error {
		_, err := m.Resume(ctx, o, ready[0].ID)
		return err
	}); errs.KindOf(err) != errs.Conflict {
		t.Errorf("resumed as if it were anyone's: %v", err)
	}
	lease := m.OpenLease()
	v := made(t, m, vm.Request{Name: "web", Env: []string{"A=b"}, Lease: lease})
	if v.ID != ready[0].ID && v.ID != ready[1].ID {
		t.Fatalf("another VM was made: %+v", v)
	}
	if v.Name != "web" || v.State != vm.Running || v.Spec.Pooled || v.Spec.Lease != lease || !slices.Contains(v.Spec.Env, "A=b") || w.machineOf(m, v).paused {
		t.Errorf("it has become %+v", v)
	}
	if c := w.lastConf; c.Hostname != "web" || c.Clone == nil || c.Clone.BootID != "" || len(c.Entropy) == 0 || c.MachineID != v.MachineID {
		t.Errorf("its guest was told %+v", c)
	}
	if w.refills != 1 || len(pooled(t, m)) != 1 {
		t.Errorf("%d refills asked for, %d left", w.refills, len(pooled(t, m)))
	}
	if err := fillPool(t, m); err != nil || len(pooled(t, m)) != 2 {
		t.Errorf("refilled to %d: %v", len(pooled(t, m)), err)
	}
	if err := m.EndLease(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Find(t.Context(), "web"); errs.KindOf(err) != errs.NotFound {
		t.Errorf("it does not go with its client: %v", err)
	}
}

func TestOthersAreNotTakenFromThePool(t *testing.T) {
	_, m := poolWorld(t, 1)
	ready := pooled(t, m)[0]
	one := 1
	for what, req := range map[string]vm.Request{
		"fewer CPUs": {CPUs: &one}, "no network": {Net: "none"}, "a cold start": {Boot: vm.Cold}, "another driver": {DiskDriver: "copy"},
	} {
		if v := made(t, m, req); v.ID == ready.ID {
			t.Errorf("%s: got that of the pool", what)
		}
	}
	made(t, m, vm.Request{Name: "web", Boot: vm.Cold})
	if _, err := create(t, m, vm.Request{Name: "web"}); errs.KindOf(err) != errs.Conflict || len(pooled(t, m)) != 1 {
		t.Errorf("a second VM of a name: %v; %d in the pool", err, len(pooled(t, m)))
	}
}

// What the user does to the VMs of the pool, or to what they are made of, is respected.
func TestThePoolFollows(t *testing.T) {
	w, m := poolWorld(t, 1)
	first := pooled(t, m)[0]
	if err := m.Delete(t.Context(), first.ID, true); err != nil {
		t.Fatal(err)
	}
	if err := fillPool(t, m); err != nil || len(pooled(t, m)) != 1 {
		t.Fatalf("after a removal: %d, %v", len(pooled(t, m)), err)
	}
	second := pooled(t, m)[0]
	if err := m.DropTemplates(t.Context(), func(base disk.Base, _ string) bool { return base.Path == w.base }); err != nil {
		t.Fatal(err)
	}
	if left := pooled(t, m); len(left) != 0 {
		t.Errorf("an image can't go for %s", left[0].Name)
	}
	m.Pool.Bytes = second.Spec.MemoryBytes - 1
	if err := fillPool(t, m); err == nil || len(pooled(t, m)) != 0 {
		t.Errorf("more memory than it may take: %v", err)
	}
	if all := m.PoolImages(); len(all) != 1 || all[0].Image != "tiny" || all[0].Wanted != 1 || all[0].Ready != 0 || !strings.Contains(all[0].Trouble, "the pool may have 511") {
		t.Errorf("it tells of that %+v", all)
	}
	m.Pool.Bytes = second.Spec.MemoryBytes
	if err := fillPool(t, m); err != nil {
		t.Error(err)
	}
	if all := m.PoolImages(); len(all) != 1 || all[0].Ready != 1 || all[0].MemoryBytes != second.Spec.MemoryBytes || all[0].Trouble != "" {
		t.Errorf("it tells of itself %+v", all)
	}
}

// The pool goes with its daemon, however that ends.
func TestThePoolGoesWithItsDaemon(t *testing.T) {
	w := newWorld(t)
	w.pool = vm.PoolSize{Images: map[string]int{"tiny": 1}, Bytes: 1 << 30}
	for _, orderly := range []bool{true, false} {
		m, end := w.daemon()
		if err := fillPool(t, m); err != nil {
			t.Fatal(err)
		}
		if orderly {
			if err := m.EndPool(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		end()
		if left := w.census(); orderly && len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
	_, end := w.daemon()
	end()
	if left := w.census(); len(left) > 0 {
		t.Errorf("left by one that was killed: %q", left)
	}
}
