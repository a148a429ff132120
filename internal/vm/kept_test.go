package vm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/guest/proto"
	"banger/internal/op"
	"banger/internal/vm"
)

// inUse is a world with a VM that runs.
func inUse(t *testing.T) (*world, *vm.Manager, vm.VM) {
	t.Helper()
	w := newWorld(t)
	m, end := w.daemon()
	t.Cleanup(func() { end() })
	v, err := create(t, m, vm.Request{Name: "web", Env: []string{"A=1"}})
	if err != nil {
		t.Fatal(err)
	}
	return w, m, v
}

func (w *world) leftOnShelf() []string {
	left, _ := filepath.Glob(filepath.Join(w.templates(), "*"))
	return left
}

func TestAVMGoesOnFromASnapshot(t *testing.T) {
	w, m, web := inUse(t)
	kept, err := snapshot(t, m, web, "ready")
	if err != nil || w.machineOf(m, web).paused {
		t.Fatalf("%v; the source is paused: %v", err, w.machineOf(m, web).paused)
	}
	v, err := create(t, m, vm.Request{Name: "later", Snapshot: "ready", Env: []string{"B=2"}})
	if err != nil {
		t.Fatal(err)
	}
	if machine := w.machineOf(m, v); machine.from == nil || *machine.from != *kept.Saved() || machine.paused || v.MAC == web.MAC || v.Spec.MemoryBytes != web.Spec.MemoryBytes {
		t.Errorf("the VM is %+v and its machine %+v", v, machine)
	}
	if c := w.lastConf; c.Clone == nil || c.Clone.Shed || c.Links[0].OldMAC != web.MAC || strings.Join(c.Env, " ") != "A=1 B=2" {
		t.Errorf("its guest was told %+v", c)
	}
	for what, req := range map[string]vm.Request{
		"memory": {MemoryBytes: new(int64(1 << 28))}, "image": {Image: "tiny"}, "network": {Net: "none"}, "afresh": {Boot: vm.Cold}, "name": {Name: "a/b"},
		"environment": {Env: []string{"x"}}, "port": {Forwards: []string{"0:80"}}, "wait": {Wait: "for me"},
	} {
		req.Snapshot = "ready"
		if v, err := create(t, m, req); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: %+v, %v", what, v, err)
		}
	}
	for _, name := range []string{"", "nosuch", "../ready", strings.Repeat("a", 10000)} {
		if v, err := create(t, m, vm.Request{Snapshot: name + "x"}); errs.KindOf(err) != errs.NotFound {
			t.Errorf("from %.20q: %+v, %v", name, v, err)
		}
	}
	if _, err := snapshot(t, m, web, "ready"); errs.KindOf(err) != errs.Conflict {
		t.Errorf("a second of that name: %v", err)
	}
	if err := m.RemoveTemplate(t.Context(), "ready"); errs.KindOf(err) != errs.NotFound {
		t.Errorf("removed as a template: %v", err)
	}
	if gone, err := m.PruneTemplates(t.Context(), 0, ""); err != nil || len(gone) > 0 {
		t.Errorf("pruned: %+v, %v", gone, err)
	}
	all := func(disk.Base, string) bool { return true }
	if err := m.DropTemplates(t.Context(), all); errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "ready") {
		t.Errorf("its image may go: %v", err)
	}
}

// A snapshot that the host could not go on from is none that boots instead.
func TestASnapshotOfAnotherMachine(t *testing.T) {
	w, m, web := inUse(t)
	if _, err := snapshot(t, m, web, "ready"); err != nil {
		t.Fatal(err)
	}
	w.set(func() { w.vmm = "another program" })
	if v, err := create(t, m, vm.Request{Name: "later", Snapshot: "ready"}); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := snapshot(t, m, web, "now"); errs.KindOf(err) != errs.Unavailable { // of what runs, not of what would
		t.Errorf("kept of a machine that can't go on: %v", err)
	}
	if _, err := operation(t, func(ctx context.Context, o *op.Operation) error { return doSuspend(ctx, m, o, web.ID) }); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("suspended as a machine that can't go on: %v", err)
	}
	settled(t, m, "web", vm.Running)
}

// What can't be read of a snapshot is not taken for rubbish.
func TestADamagedSnapshotStays(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	web, err := create(t, m, vm.Request{Name: "web"})
	if err == nil {
		_, err = snapshot(t, m, web, "ready")
	}
	if err == nil {
		err = m.Delete(t.Context(), web.ID, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(w.templates(), "ready", "template.json")
	if err := os.Chmod(record, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	end()
	m, end = w.daemon()
	defer end()
	if _, err := os.Stat(filepath.Join(w.templates(), "ready", "memory")); err != nil {
		t.Errorf("its memory: %v", err)
	}
	if all, _, err := m.ListSnapshots(t.Context()); err != nil || len(all) != 1 || all[0].Damaged == "" {
		t.Errorf("listed: %+v, %v", all, err)
	}
	if v, err := create(t, m, vm.Request{Snapshot: "ready"}); err == nil {
		t.Errorf("made from it: %+v", v)
	}
	if err := m.DropTemplates(t.Context(), func(disk.Base, string) bool { return false }); errs.KindOf(err) != errs.Conflict {
		t.Errorf("what it may lie on can go: %v", err)
	}
	if err := m.RemoveSnapshot(t.Context(), "ready"); err != nil || len(w.leftOnShelf()) > 0 {
		t.Errorf("removed: %v, left %q", err, w.leftOnShelf())
	}
}

func TestForksComeAllOrNone(t *testing.T) {
	w, m, web := inUse(t)
	copies, err := fork(t, m, web, 3, vm.Request{Name: "copy"})
	if err != nil || len(copies) != 3 {
		t.Fatalf("%+v, %v", copies, err)
	}
	for i, v := range copies {
		if v.Name != fmt.Sprintf("copy-%d", i+1) || v.State != vm.Running {
			t.Errorf("copy %d is %+v", i, v)
		}
	}
	w.set(func() { w.fail = proto.MethodConfigure })
	if copies, err := fork(t, m, web, 2, vm.Request{Name: "none"}); err == nil {
		t.Errorf("made: %+v", copies)
	}
	if copies, err := fork(t, m, web, 2, vm.Request{Name: "copy"}); err == nil { // names that are taken
		t.Errorf("made: %+v", copies)
	}
	w.set(func() { w.fail = "" })
	all, err := m.List(t.Context())
	if err != nil || len(all) != 4 {
		t.Errorf("there are %d VMs, %v", len(all), err)
	}
	for _, n := range []int{-1, 0, 101} {
		if _, err := fork(t, m, web, n, vm.Request{}); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%d copies: %v", n, err)
		}
	}
	for _, v := range all {
		if err := m.Delete(t.Context(), v.ID, true); err != nil {
			t.Error(err)
		}
	}
	if left := w.leftOnShelf(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// The shelf is empty when the last of many generations is gone.
func TestForksOfForks(t *testing.T) {
	w, m, v := inUse(t)
	for i := range 12 {
		copies, err := fork(t, m, v, 1, vm.Request{Name: fmt.Sprintf("copy%d", i)})
		if err != nil {
			t.Fatalf("generation %d: %v", i, err)
		}
		v = copies[0]
	}
	all, err := m.List(t.Context())
	if err != nil || len(all) != 13 {
		t.Fatalf("there are %d VMs, %v", len(all), err)
	}
	for _, v := range all {
		if err := m.Delete(t.Context(), v.ID, true); err != nil {
			t.Error(err)
		}
	}
	if left := w.leftOnShelf(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// Once a guest goes on, nothing that its user or the daemon does takes it away again.
func TestAResumeThatItsCallerLeaves(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m, end := w.daemon()
		defer end()
		web, err := create(t, m, vm.Request{Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := operation(t, func(ctx context.Context, o *op.Operation) error { return doSuspend(ctx, m, o, web.ID) }); err != nil {
			t.Fatal(err)
		}
		w.set(func() { w.silent = true })
		o := op.NewRegistry(t.Context()).Start("resume", func(ctx context.Context, o *op.Operation) error { return doResume(ctx, m, o, web.ID) })
		time.Sleep(time.Second)
		o.Cancel()
		if err := o.Wait(t.Context()); err != nil {
			t.Errorf("resumed: %v", err)
		}
		v := settled(t, m, "web", vm.Running)
		if v.Reason == "" || v.Suspended {
			t.Errorf("a silent guest is %+v", v)
		}
		if left, _ := filepath.Glob(filepath.Join(m.Directory(v), "kept", "*")); len(left) > 0 {
			t.Errorf("kept is %q", left)
		}
		w.set(func() { w.silent = false })
	})
}

// A suspended VM does what can be done without its machine, says of the rest how to have that back,
// and is there after a restart of the host.
func TestWhatASuspendedVMDoes(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	web, err := create(t, m, vm.Request{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	do := func(m *vm.Manager, verb func(context.Context, *vm.Manager, *op.Operation, string) error) error {
		_, err := operation(t, func(ctx context.Context, o *op.Operation) error { return verb(ctx, m, o, web.ID) })
		return err
	}
	if err := do(m, doSuspend); err != nil {
		t.Fatal(err)
	}
	for what, verb := range map[string]func(context.Context, *vm.Manager, *op.Operation, string) error{
		"restart": doRestart,
		"snapshot": func(ctx context.Context, m *vm.Manager, o *op.Operation, id string) error {
			_, err := m.Snapshot(ctx, o, id, "")
			return err
		},
		"fork": func(ctx context.Context, m *vm.Manager, o *op.Operation, id string) error {
			_, err := m.Fork(ctx, o, id, 1, vm.Request{})
			return err
		},
		"pause": func(ctx context.Context, m *vm.Manager, _ *op.Operation, id string) error {
			_, err := m.Pause(ctx, id)
			return err
		},
		"exec": func(ctx context.Context, m *vm.Manager, _ *op.Operation, id string) error {
			_, err := m.Guest(ctx, id)
			return err
		},
	} {
		var e *errs.Error
		if err := do(m, verb); !errors.As(err, &e) || e.Kind != errs.Conflict || !strings.Contains(e.Hint, "banger resume web") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, verb := range map[string]func(context.Context, *vm.Manager, *op.Operation, string) error{"stop": doStop(time.Minute), "kill": doStop(0), "suspend": doSuspend} {
		if err := do(m, verb); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		settled(t, m, "web", vm.Suspended)
	}
	end()
	w.set(func() { w.bootID = "another boot" })
	m, end = w.daemon()
	defer end()
	settled(t, m, "web", vm.Suspended)
	if err := do(m, doResume); err != nil {
		t.Error(err)
	}
	if v := settled(t, m, "web", vm.Running); v.MAC != web.MAC || v.MachineID != web.MachineID || w.machineOf(m, v).from == nil {
		t.Errorf("after a restart of the host it is %+v", v)
	}
	if err := do(m, doSuspend); err != nil {
		t.Error(err)
	}
	if err := m.Delete(t.Context(), web.ID, false); err != nil {
		t.Error(err)
	}
}
