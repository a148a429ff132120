package vm_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"banger/internal/errs"
	"banger/internal/op"
	"banger/internal/vm"
)

// kinds lists what the store says a VM has, a pending one with a question mark.
func kinds(t *testing.T, m *vm.Manager, id string) string {
	t.Helper()
	all, err := m.Store.Resources(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range all {
		name := string(r.Kind)
		if !r.Live {
			name += "?"
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

func start(t *testing.T, m *vm.Manager, id string) error {
	t.Helper()
	_, err := operation(t, func(ctx context.Context, o *op.Operation) error {
		_, err := m.Start(ctx, o, id, "", "")
		return err
	})
	return err
}

func stop(t *testing.T, m *vm.Manager, id string) {
	t.Helper()
	if _, err := operation(t, func(ctx context.Context, o *op.Operation) error {
		_, err := m.Stop(ctx, o, id, vm.StopLimit)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestADiskIsAttachedWhileItsMachineRuns(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	v := made(t, m, vm.Request{Name: "web"})
	if got := kinds(t, m, v.ID); got != "attached directory disk machine" {
		t.Errorf("running it has %s", got)
	}
	stop(t, m, v.ID)
	if got := kinds(t, m, v.ID); got != "directory disk" {
		t.Errorf("stopped it has %s", got)
	}
	w.set(func() { w.fail = "attach" })
	if err := start(t, m, v.ID); err == nil {
		t.Error("it started without its disk")
	}
	if got := kinds(t, m, v.ID); got != "directory disk" {
		t.Errorf("after a failed start it has %s", got)
	}
	w.set(func() { w.fail = "detach" })
	if err := m.Delete(t.Context(), v.ID, false); err == nil {
		t.Error("it was removed with its disk attached")
	}
	if v, err := m.Find(t.Context(), "web"); err != nil || v.State != vm.Failed || !strings.Contains(v.Reason, "detach fails") {
		t.Errorf("%s: %s, %v", v.State, v.Reason, err)
	}
	w.set(func() { w.fail = "" })
	if err := m.Delete(t.Context(), v.ID, false); err != nil {
		t.Error(err)
	}
	if found := w.census(); len(found) > 0 {
		t.Errorf("left: %v", found)
	}
}

// A daemon that dies between attaching and launching leaves a pending row; the next one
// detaches.
func TestAnAttachmentThatWasCutShort(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	v := made(t, m, vm.Request{Name: "web"})
	stop(t, m, v.ID)
	if _, err := m.Store.Update(t.Context(), v.ID, "start", func(*vm.VM) error { return nil }, vm.Change{Kind: vm.KindAttached, Status: vm.Pending}); err != nil {
		t.Fatal(err)
	}
	end()
	m, end = w.daemon()
	defer end()
	if got := kinds(t, m, v.ID); got != "directory disk" {
		t.Errorf("recovered it has %s", got)
	}
}

func TestAFullHostPausesAVM(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	v := made(t, m, vm.Request{Name: "web"})
	halt := func() {
		for _, machine := range w.machines {
			machine.halts <- "the host's filesystem is full"
		}
	}
	for range 2 { // resumed without room, it halts again
		halt()
		if v := settled(t, m, "web", vm.Paused); !strings.Contains(v.Reason, "filesystem is full") || !strings.Contains(v.Reason, "banger resume web") {
			t.Errorf("reason: %s", v.Reason)
		}
		if v, err := resume(t, m, v.ID); err != nil || v.State != vm.Running || v.Reason != "" {
			t.Errorf("resumed: %s, %q, %v", v.State, v.Reason, err)
		}
	}
	w.set(func() { w.fail = "disk check" }) // the disk can't come back
	halt()
	if v := settled(t, m, "web", vm.Failed); !strings.Contains(v.Reason, "disk check fails") || v.Machine != nil {
		t.Errorf("%+v", v)
	}
}

func TestAFullHostFailsAStart(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	v := made(t, m, vm.Request{Name: "web"})
	stop(t, m, v.ID)
	w.set(func() { w.silent, w.halts = true, "the host's filesystem is full" })
	if err := start(t, m, v.ID); err == nil || !strings.Contains(err.Error(), "filesystem is full") {
		t.Errorf("started: %v", err)
	}
	if v, err := m.Find(t.Context(), "web"); err != nil || v.State != vm.Failed || kinds(t, m, v.ID) != "directory disk" {
		t.Errorf("%s with %s, %v", v.State, kinds(t, m, v.ID), err)
	}
}

func TestTheDiskDriverAskedFor(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	for asked, want := range map[string]string{"": "qcow2", "auto": "qcow2", "qcow2": "qcow2", "copy": "copy"} {
		var v vm.VM
		warned, err := operation(t, func(ctx context.Context, o *op.Operation) (err error) {
			v, err = m.Create(ctx, o, vm.Request{DiskDriver: asked})
			return err
		})
		if err != nil || v.Disk.Driver != want {
			t.Errorf("%q gives %q, %v", asked, v.Disk.Driver, err)
		}
		told := strings.Join(warned, "\n")
		if slow := strings.Contains(told, "whole copy") && strings.Contains(told, " MiB in "); slow != (want == "copy") {
			t.Errorf("%q warns of %q", asked, told)
		}
		if err := m.Delete(t.Context(), v.ID, false); err != nil {
			t.Error(err)
		}
	}
	if _, err := create(t, m, vm.Request{DiskDriver: "zfs"}); errs.KindOf(err) != errs.Invalid || !strings.Contains(errs.HintOf(err), "auto") {
		t.Errorf("a driver that is not there: %v", err)
	}
	if found := w.census(); len(found) > 0 {
		t.Errorf("left: %v", found)
	}
}

func TestABaseThatIsGoneIsTold(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	v := made(t, m, vm.Request{Name: "web"})
	stop(t, m, v.ID)
	if err := os.Rename(w.base, w.base+".away"); err != nil {
		t.Fatal(err)
	}
	if err := start(t, m, v.ID); errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), w.base+" is gone") {
		t.Errorf("started without its base: %v", err)
	}
	if err := os.Rename(w.base+".away", w.base); err != nil {
		t.Fatal(err)
	}
	if err := start(t, m, v.ID); err != nil {
		t.Errorf("with its base back: %v", err)
	}
}
