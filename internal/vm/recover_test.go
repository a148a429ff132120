package vm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/errs"
	"banger/internal/op"
	"banger/internal/vm"
)

// inState brings a VM of this name to the state, which can be any that a VM rests in.
func inState(t *testing.T, w *world, m *vm.Manager, name string, s vm.State, req vm.Request) vm.VM {
	t.Helper()
	req.Name = name
	v, err := create(t, m, req)
	if err != nil {
		t.Fatal(err)
	}
	switch s {
	case vm.Paused:
		_, err = m.Pause(t.Context(), v.ID)
	case vm.Stopped:
		_, err = operation(t, func(ctx context.Context, o *op.Operation) error { return doStop(0)(ctx, m, o, v.ID) })
	case vm.Failed:
		w.endMachine(m.Directory(v))
	}
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	if v, err = m.Find(t.Context(), name); err != nil || v.State != s {
		t.Fatalf("VM %s is %q, %v; not %q", name, v.State, err, s)
	}
	return v
}

func TestTheHostIsRestarted(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m, end := w.daemon()
		ids := map[string]string{}
		for name, req := range map[string]vm.Request{
			"plain": {}, "auto": {Autostart: true}, "temp": {AutoRemove: true, Autostart: true}, "leased": {Lease: m.OpenLease(), Autostart: true},
		} {
			ids[name] = inState(t, w, m, name, vm.Running, req).ID
		}
		inState(t, w, m, "auto-stopped", vm.Stopped, vm.Request{Autostart: true})
		inState(t, w, m, "auto-failed", vm.Failed, vm.Request{Autostart: true})
		ids["auto-paused"] = inState(t, w, m, "auto-paused", vm.Paused, vm.Request{Autostart: true}).ID
		end()
		w.set(func() { w.bootID = "boot-2"; clear(w.machines) })

		m, end = w.daemon()
		defer end()
		got := map[string]string{}
		vms, err := m.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range vms {
			got[v.Name] = string(v.State) + ": " + v.Reason
		}
		want := map[string]string{
			"plain": "stopped: the host was restarted", "auto": "stopped: the host was restarted", "auto-paused": "stopped: the host was restarted",
			"auto-stopped": "stopped: ", "auto-failed": "failed: it had enough",
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		slices.Sort(w.again)
		if want := slices.Sorted(slices.Values([]string{ids["auto"], ids["auto-paused"]})); !slices.Equal(w.again, want) {
			t.Errorf("to be started again are %v, want %v", w.again, want)
		}
		for _, id := range w.again {
			if _, err := operation(t, func(ctx context.Context, o *op.Operation) error { return doStart(ctx, m, o, id) }); err != nil {
				t.Errorf("start it again: %v", err)
			}
		}
		if wrong := append(w.audit(m, false), w.clear(m)...); wrong != nil {
			t.Errorf("%v", wrong)
		}
	})
}

func TestRecoveryOf100WaitsForNobody(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m, end := w.daemon()
		var hung vm.VM
		for i := range 100 {
			v := inState(t, w, m, fmt.Sprintf("vm-%d", i), []vm.State{vm.Running, vm.Paused, vm.Stopped, vm.Running}[i%4], vm.Request{})
			if i == 40 {
				hung = v
			}
		}
		end()
		w.set(func() { w.hangs = hung.ID })
		began := time.Now()
		m, end = w.daemon()
		defer end()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("recovery took %v", took)
		}
		vms, err := m.List(t.Context())
		if err != nil || len(vms) != 100 {
			t.Fatalf("%d VMs are known, %v", len(vms), err)
		}
		for _, v := range vms {
			if v.ID == hung.ID {
				continue
			}
			if _, err := operation(t, func(ctx context.Context, o *op.Operation) error { return doRestart(ctx, m, o, v.ID) }); err != nil {
				t.Errorf("restart of %s: %v", v.Name, err)
			}
		}
		err = m.Delete(t.Context(), hung.ID, true)
		if errs.KindOf(err) != errs.Busy || !strings.Contains(err.Error(), "is being recovered") {
			t.Errorf("rm of the VM that is waited for: %v", err)
		}
		later := func(want string) { // of the world's time: past the patience with one VM
			t.Helper()
			time.Sleep(recovered)
			synctest.Wait()
			if v, err := m.Find(t.Context(), hung.ID); err != nil || v.State != vm.Running || v.Reason != want {
				t.Errorf("the VM is %q (%s), %v; want %q", v.State, v.Reason, err, want)
			}
		}
		later("its machine does not answer; banger kill " + hung.Name + " ends it")
		if _, err := m.Pause(t.Context(), hung.ID); errs.KindOf(err) != errs.Busy {
			t.Errorf("pause of a VM that does not answer: %v", err)
		}
		w.set(func() { w.hangs = "" })
		later("")
		if _, err := m.Pause(t.Context(), hung.ID); err != nil {
			t.Errorf("pause of a VM that answers again: %v", err)
		}
		if wrong := append(w.audit(m, false), w.clear(m)...); wrong != nil {
			t.Errorf("%v", wrong)
		}
	})
}

// What becomes of a VM whose machine does not answer: any verb that ends it does, and so does its
// machine's own end.
func TestASilentMachineEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		ends func(*testing.T, *world, *vm.Manager, vm.VM) error
		want string
	}{
		"rm": {func(t *testing.T, _ *world, m *vm.Manager, v vm.VM) error { return m.Delete(t.Context(), v.ID, true) }, " "},
		"kill": {func(t *testing.T, _ *world, m *vm.Manager, v vm.VM) error {
			_, err := operation(t, func(ctx context.Context, o *op.Operation) error { return doStop(0)(ctx, m, o, v.ID) })
			return err
		}, "stopped "},
		"by itself": {func(_ *testing.T, w *world, m *vm.Manager, v vm.VM) error {
			w.endMachine(m.Directory(v))
			return nil
		}, "stopped its machine ended and had not answered"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				m, end := w.daemon()
				v := inState(t, w, m, "web", vm.Running, vm.Request{})
				end()
				w.set(func() { w.hangs = v.ID })
				m, end = w.daemon()
				defer end()
				time.Sleep(recovered)
				if err := tc.ends(t, w, m, v); err != nil {
					t.Fatal(err)
				}
				w.set(func() { w.hangs = "" })
				time.Sleep(recovered)
				synctest.Wait()
				v, err := m.Find(t.Context(), "web")
				if got := string(v.State) + " " + v.Reason; got != tc.want || err != nil && errs.KindOf(err) != errs.NotFound {
					t.Errorf("it is %q, %v; want %q", got, err, tc.want)
				}
				if wrong := append(w.audit(m, false), w.clear(m)...); wrong != nil {
					t.Errorf("%v", wrong)
				}
			})
		})
	}
}

// recovered is a time after which a daemon has been through with what it began to recover.
const recovered = 2 * time.Minute

func TestTheStoreIsLost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m, end := w.daemon()
		was := map[string]vm.VM{}
		for _, s := range []vm.State{vm.Running, vm.Paused, vm.Stopped, vm.Failed} {
			was[string(s)] = inState(t, w, m, string(s), s, vm.Request{Env: []string{"A=b"}})
		}
		twin := inState(t, w, m, "twin", vm.Stopped, vm.Request{})
		end()
		w.losesStore()
		write := func(dir, text string) {
			t.Helper()
			dir = filepath.Join(w.vms(), dir)
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "vm.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("bad", "{}")
		write("000000000000", "no JSON")
		again := twin // a name that another VM took when it was free, in a backup say
		again.ID, again.Disk.Path = "ffffffffffff", filepath.Join(w.vms(), "ffffffffffff", "root.qcow2")
		doc, err := json.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		write(again.ID, string(doc))

		m, end = w.daemon()
		defer end()
		for name, v := range was {
			got, err := m.Find(t.Context(), name)
			if err != nil || !reflect.DeepEqual(got, v) {
				t.Errorf("%s came back as\n%+v, %v; was\n%+v", name, got, err, v)
			}
		}
		if v, err := m.Find(t.Context(), "twin-"+again.ID); err != nil || v.ID != again.ID {
			t.Errorf("the second of a name: %+v, %v", v, err)
		}
		if _, err := m.Guest(t.Context(), string(vm.Running)); err != nil {
			t.Errorf("the guest of the running one: %v", err)
		}
		found, err := m.Census(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var strays []string
		for _, f := range found {
			if f.Problem != "" {
				strays = append(strays, f.VM+": "+f.Problem)
			}
		}
		slices.Sort(strays)
		if want := []string{"000000000000: no row explains it", "bad: no row explains it"}; !slices.Equal(strays, want) {
			t.Errorf("the census tells %q, want %q", strays, want)
		}
	})
}

// losesStore removes the database, between two daemons.
func (w *world) losesStore() {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(w.database() + suffix); err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
	}
}

// A daemon that is cut while it makes the VMs known again leaves the rest to the next.
func TestRebuildingIsCut(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m, end := w.daemon()
		for i := range 4 {
			inState(t, w, m, fmt.Sprintf("vm-%d", i), vm.Running, vm.Request{})
		}
		end()
		for n, where := 1, "somewhere"; where != ""; n++ {
			w.losesStore()
			w.gate.arm(n, cuts)
			_, end, _ := w.open()
			end()
			where, _ = w.gate.disarm()
			m, end = w.daemon()
			synctest.Wait()
			if vms, err := m.List(t.Context()); err != nil || len(vms) != 4 {
				t.Errorf("cut at step %d (%s): %d VMs are known, %v", n, where, len(vms), err)
			}
			for _, text := range w.audit(m, false) {
				t.Errorf("cut at step %d (%s): %s", n, where, text)
			}
			end()
		}
	})
}

// A machine ends while the store can't be written to: it is not shown as running for ever.
func TestAMachineEndsWhileTheStoreFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m, end := w.daemon()
		defer end()
		v := inState(t, w, m, "web", vm.Running, vm.Request{})
		w.gate.arm(1, cuts) // everything fails from now on
		w.endMachine(m.Directory(v))
		time.Sleep(time.Minute)
		w.gate.disarm()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if v, err := m.Find(t.Context(), "web"); err != nil || v.State != vm.Failed || v.Reason != "it had enough" {
			t.Errorf("it is %q (%s), %v", v.State, v.Reason, err)
		}
		if wrong := append(w.audit(m, false), w.clear(m)...); wrong != nil {
			t.Errorf("%v", wrong)
		}
	})
}
