package vm_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"banger/internal/errs"
	"banger/internal/op"
	"banger/internal/template"
	"banger/internal/vm"
)

func snapshot(t *testing.T, m *vm.Manager, v vm.VM, name string) (kept template.Template, err error) {
	t.Helper()
	_, err = operation(t, func(ctx context.Context, o *op.Operation) (err error) {
		kept, err = m.Snapshot(ctx, o, v.ID, name)
		return err
	})
	return kept, err
}

func fork(t *testing.T, m *vm.Manager, v vm.VM, n int, req vm.Request) (copies []vm.VM, err error) {
	t.Helper()
	_, err = operation(t, func(ctx context.Context, o *op.Operation) (err error) {
		copies, err = m.Fork(ctx, o, v.ID, n, req)
		return err
	})
	return copies, err
}

// However long the chain of snapshots of VMs of snapshots, disks do not pile up on each other, and
// what one VM has written the last one reads.
func TestSnapshotsOfVMsOfSnapshots(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	v := made(t, m, vm.Request{})
	mark := []byte("written by the first")
	f, err := os.OpenFile(v.Disk.Path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(mark); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		kept, err := snapshot(t, m, v, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{kept.Saved().Memory, kept.Saved().State, kept.Disk.Path} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", path, info, err)
			}
		}
		if info, err := os.Stat(kept.Saved().Memory); err != nil || info.Size() != v.Spec.MemoryBytes {
			t.Errorf("its memory: %v, %v", info, err)
		}
		was := v
		v = made(t, m, vm.Request{Snapshot: kept.Name})
		if v.Disk.On.Path != w.base || kept.Disk.On.Path != w.base {
			t.Fatalf("number %d lies on %+v, its snapshot on %+v", i, v.Disk.On, kept.Disk.On)
		}
		if c := w.lastConf; c.Clone == nil || c.Hostname != v.Name || c.Links[0].OldMAC != was.MAC || v.MAC == was.MAC || v.MachineID == was.MachineID {
			t.Errorf("the guest of number %d was told %+v", i, c)
		}
		if err := m.Delete(t.Context(), was.ID, true); err != nil {
			t.Fatal(err)
		}
	}
	last, err := os.ReadFile(v.Disk.Path)
	if err != nil || !bytes.HasSuffix(last, mark) {
		t.Errorf("the last one has not what the first has written, %v", err)
	}
}

// A copy that can't be made takes the others with it, and the VM goes on whatever happens.
func TestForksAreMadeAllOrNone(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	web := made(t, m, vm.Request{Name: "web"})
	copies, err := fork(t, m, web, 5, vm.Request{})
	if err != nil || len(copies) != 5 {
		t.Fatalf("copies: %+v, %v", copies, err)
	}
	for _, v := range append(copies, web) {
		if w.machineOf(m, v).paused {
			t.Errorf("%s does not run", v.Name)
		}
	}
	before := len(w.census())
	for _, step := range []string{"load", "save"} {
		w.set(func() { w.fail = step })
		_, err := fork(t, m, web, 3, vm.Request{})
		w.set(func() { w.fail = "" })
		if err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("%s fails, and: %v", step, err)
		}
		if w.machineOf(m, web).paused {
			t.Errorf("%s fails, and the VM stands still", step)
		}
		if len(w.census()) != before {
			t.Errorf("%s fails, and there are %d objects and not %d", step, len(w.census()), before)
		}
	}
	for _, n := range []int{0, -1, 101} {
		if _, err := fork(t, m, web, n, vm.Request{}); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%d copies: %v", n, err)
		}
	}
}

// A snapshot is needed by a VM of it that has not run. Then what it lies on is: the VM's disk reads
// from there.
func TestASnapshotGoesWhenNothingNeedsIt(t *testing.T) {
	w, m, below := warmWorld(t)
	kept, err := snapshot(t, m, made(t, m, vm.Request{Name: "web"}), "ready")
	if err != nil {
		t.Fatal(err)
	}
	var waits vm.VM
	if _, err := operation(t, func(ctx context.Context, o *op.Operation) (err error) {
		waits, err = m.Create(ctx, o, vm.Request{Name: "waits", Snapshot: "ready"})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := m.RemoveSnapshot(t.Context(), "ready"); errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "waits") {
		t.Errorf("removed while a VM of it waits: %v", err)
	}
	if _, err := operation(t, func(ctx context.Context, o *op.Operation) error { return doStart(ctx, m, o, waits.ID) }); err != nil {
		t.Fatal(err)
	}
	fresh := made(t, m, vm.Request{Name: "fresh", Snapshot: "ready"})
	if err := m.RemoveSnapshot(t.Context(), "ready"); err != nil {
		t.Errorf("removed while VMs of it run: %v", err)
	}
	if _, err := os.Stat(kept.Dir); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
	web, err := m.Find(t.Context(), "web")
	if err == nil {
		err = m.Delete(t.Context(), web.ID, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.PruneTemplates(t.Context(), 0, ""); err != nil || len(w.leftOnShelf()) != 1 {
		t.Errorf("left is %q, %v", w.leftOnShelf(), err)
	}
	for _, v := range []vm.VM{waits, fresh} {
		if err := m.RemoveTemplate(t.Context(), below.Name); errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), v.Name) {
			t.Errorf("what the disk of %s lies on: %v", v.Name, err)
		}
		if _, err := operation(t, func(ctx context.Context, o *op.Operation) error { return doRestart(ctx, m, o, v.ID) }); err != nil {
			t.Error(err)
		}
		if v := settled(t, m, v.Name, vm.Running); v.StartKind != vm.Cold {
			t.Errorf("started again it is %+v", v)
		}
		if err := m.Delete(t.Context(), v.ID, true); err != nil {
			t.Error(err)
		}
	}
	if err := m.RemoveTemplate(t.Context(), below.Name); err != nil || len(w.leftOnShelf()) > 0 {
		t.Errorf("left is %q, %v", w.leftOnShelf(), err)
	}
}
