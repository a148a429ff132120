package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"banger/internal/errs"
	"banger/internal/vm"
)

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func fresh(t *testing.T) *Store { return open(t, filepath.Join(t.TempDir(), "banger.db")) }

// history returns the events as "name state cause", in order.
func (s *Store) history(t *testing.T) (lines []string) {
	t.Helper()
	rows, err := s.db.Query("SELECT name, state, cause FROM events ORDER BY seq")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name, state, cause string
		if err := rows.Scan(&name, &state, &cause); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, name+" "+state+" "+cause)
	}
	return lines
}

func TestLifeOfARow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd name?#%.db")
	s := open(t, path)
	ctx := t.Context()
	v := vm.VM{ID: "0123456789ab", Name: "web", State: vm.Creating, Spec: vm.Spec{Image: "tiny", CPUs: 2}}
	if err := s.Create(ctx, v, vm.KindDirectory, vm.KindDisk); err != nil {
		t.Fatal(err)
	}
	twin := v
	twin.ID = "ba9876543210"
	if err := s.Create(ctx, twin); errs.KindOf(err) != errs.Conflict {
		t.Errorf("a taken name: %v", err)
	}
	if _, err := s.Update(ctx, v.ID, "created", func(x *vm.VM) error { return x.To(vm.Stopped, "") }, vm.Change{Kind: vm.KindDisk, Status: vm.Live}); err != nil {
		t.Fatal(err)
	}
	s.Close()

	s = open(t, path) // as the next daemon would
	for _, ref := range []string{"web", v.ID} {
		got, err := s.Get(ctx, ref)
		if err != nil || got.State != vm.Stopped || got.Spec.Image != "tiny" {
			t.Errorf("Get(%q) = %+v, %v", ref, got, err)
		}
	}
	res, err := s.Resources(ctx, v.ID)
	if want := []vm.Resource{{Kind: vm.KindDirectory}, {Kind: vm.KindDisk, Live: true}}; err != nil || !reflect.DeepEqual(res, want) {
		t.Errorf("resources are %v, %v; want %v", res, err, want)
	}
	if err := s.Delete(ctx, v.ID, "rm", vm.KindDisk); err == nil {
		t.Error("a VM was dropped while its directory may exist")
	}
	if err := s.Delete(ctx, v.ID, "rm", vm.KindDisk, vm.KindDirectory); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(ctx, v.ID); errs.KindOf(err) != errs.NotFound {
		t.Errorf("after Delete: %v", err)
	}
	want := []string{"web creating create", "web stopped created", "web removed rm"}
	if got := s.history(t); !reflect.DeepEqual(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

func TestAFailedUpdateChangesNothing(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	v := vm.VM{ID: "0123456789ab", Name: "web", State: vm.Creating}
	if err := s.Create(ctx, v); err != nil {
		t.Fatal(err)
	}
	_, err := s.Update(ctx, v.ID, "x", func(x *vm.VM) error {
		x.Reason = "changed"
		return x.To(vm.Paused, "")
	})
	if errs.KindOf(err) != errs.Conflict {
		t.Errorf("creating became paused: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Update(cancelled, v.ID, "x", func(x *vm.VM) error { return x.To(vm.Stopped, "") }); err == nil {
		t.Error("an update under an ended context took place")
	}
	if got, err := s.Get(ctx, v.ID); err != nil || got.State != vm.Creating || got.Reason != "" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestOneWinnerForAName(t *testing.T) {
	s := fresh(t)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		won  int
		lost int
	)
	for i := range 16 {
		wg.Go(func() {
			err := s.Create(t.Context(), vm.VM{ID: fmt.Sprintf("%012x", i), Name: "same", State: vm.Creating})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won++
			case errs.KindOf(err) == errs.Conflict:
				lost++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 || lost != 15 {
		t.Errorf("%d won and %d lost", won, lost)
	}
}

func TestRefusedFiles(t *testing.T) {
	newer := filepath.Join(t.TempDir(), "newer.db")
	s := open(t, newer)
	if _, err := s.db.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(t.Context(), newer); errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "version 99") {
		t.Errorf("a newer schema: %v", err)
	}
	garbage := filepath.Join(t.TempDir(), "garbage.db")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("not a database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), garbage); err == nil {
		t.Error("garbage was opened")
	}
}

func TestListsAreNeverOld(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	names := func() (all string) {
		vms, err := s.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range vms {
			all += v.Name + " " + string(v.State) + ";"
			vms[i].Name = "the caller's own"
		}
		return all
	}
	step := func(want string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // read, and as it is kept
			if got := names(); got != want {
				t.Errorf("listed %q, want %q", got, want)
			}
		}
	}
	step("", nil)
	step("b creating;", s.Create(ctx, vm.VM{ID: "0123456789ab", Name: "b", State: vm.Creating}))
	step("a creating;b creating;", s.Create(ctx, vm.VM{ID: "ba9876543210", Name: "a", State: vm.Creating}))
	_, err := s.Update(ctx, "ba9876543210", "made", func(v *vm.VM) error { return v.To(vm.Stopped, "") })
	step("a stopped;b creating;", err)
	step("a stopped;", s.Delete(ctx, "0123456789ab", "rm"))
}

func TestTheReserveIsLaidAndSpent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	s := open(t, path)
	size := func() int64 {
		info, err := os.Stat(path + "-reserve")
		if err != nil {
			return 0
		}
		return info.Size()
	}
	if size() != mostReserve {
		t.Errorf("a new database has a reserve of %d bytes", size())
	}
	if err := s.makeRoom(t.Context()); err != nil || size() != 0 {
		t.Errorf("after making room %d bytes are left, %v", size(), err)
	}
	if err := s.Create(t.Context(), vm.VM{ID: "0123456789ab", Name: "a", State: vm.Creating}); err != nil || size() != 0 {
		t.Errorf("a new VM laid %d bytes, %v", size(), err)
	}
	if err := s.Delete(t.Context(), "0123456789ab", "rm"); err != nil || size() != mostReserve {
		t.Errorf("after a removal the reserve has %d bytes, %v", size(), err)
	}
}

func TestAddresses(t *testing.T) {
	ctx := t.Context()
	s := fresh(t)
	at := func(id, address string) vm.VM {
		return vm.VM{ID: id, Name: "vm" + id, State: vm.Running, Address: netip.MustParsePrefix(address)}
	}
	for _, v := range []vm.VM{at("1", "10.1.0.2/24"), at("2", "10.1.0.3/24"), {ID: "3", Name: "vm3", State: vm.Running}, {ID: "4", Name: "vm4", State: vm.Running}} {
		if err := s.Create(ctx, v, vm.KindNetwork); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Create(ctx, at("5", "10.1.0.3/24")); !errors.Is(err, vm.ErrAddressTaken) {
		t.Errorf("an address twice: %v", err)
	}
	swapped := map[string]netip.Prefix{"1": netip.MustParsePrefix("10.1.0.3/24"), "2": netip.MustParsePrefix("10.1.0.2/24")}
	if err := s.Readdress(ctx, swapped); err != nil {
		t.Fatal(err)
	}
	for id, want := range swapped {
		v, err := s.Get(ctx, id)
		if err != nil || v.Address != want {
			t.Errorf("VM %s has %v, %v", id, v.Address, err)
		}
		if r, err := s.Resources(ctx, id); err != nil || len(r) != 1 || r[0].Live {
			t.Errorf("VM %s has %v, %v", id, r, err)
		}
	}
	if err := s.Readdress(ctx, map[string]netip.Prefix{"1": netip.MustParsePrefix("10.2.0.9/24"), "2": netip.MustParsePrefix("10.2.0.9/24")}); err == nil {
		t.Error("two VMs have one address")
	}
	if v, err := s.Get(ctx, "1"); err != nil || v.Address != swapped["1"] {
		t.Errorf("half of that was done: %v, %v", v.Address, err)
	}
}

func TestNotes(t *testing.T) {
	s := fresh(t)
	if err := s.Note(t.Context(), "network", "a route overlaps"); err != nil {
		t.Fatal(err)
	}
	all, err := s.Events(t.Context(), 0, 10)
	if err != nil || len(all) != 1 || all[0].VM != "" || all[0].To != "" || all[0].Cause != "network" || all[0].Reason != "a route overlaps" {
		t.Errorf("%+v, %v", all, err)
	}
}

// What is intended, and what is deleted, is seen at once; the flush that this saves is made
// good by sync, and every other transaction is flushed as before.
func TestSwiftCommits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	s, ctx := open(t, path), t.Context()
	flushes := func() (level int) {
		if err := s.db.QueryRow("PRAGMA synchronous").Scan(&level); err != nil {
			t.Fatal(err)
		}
		return level
	}
	const full = 2
	v := vm.VM{ID: "0123456789ab", Name: "web", State: vm.Stopped}
	if err := s.Create(ctx, v); err != nil {
		t.Fatal(err)
	}
	var during int
	_, sync, err := s.Intend(ctx, v.ID, "rm", func(x *vm.VM) error { return x.To(vm.Deleting, "") }, vm.Change{Kind: vm.KindDisk, Status: vm.Pending})
	if err != nil || flushes() != full {
		t.Fatalf("%v, and commits flush at level %d", err, flushes())
	}
	if got, err := open(t, path).Get(ctx, "web"); err != nil || got.State != vm.Deleting {
		t.Errorf("another sees %+v, %v", got, err)
	}
	if err := sync(); err != nil {
		t.Error(err)
	}
	if _, _, err := s.Intend(ctx, "nobody", "rm", nil); errs.KindOf(err) != errs.NotFound || flushes() != full {
		t.Errorf("one that fails: %v, level %d", err, flushes())
	}
	err = s.tx(ctx, swift, func(tx *sql.Tx) error { return tx.QueryRow("PRAGMA synchronous").Scan(&during) })
	if err != nil || during == full {
		t.Errorf("a swift transaction flushes at level %d, %v", during, err)
	}
	gone, cancel := context.WithCancel(ctx)
	_, _, err = s.Intend(gone, v.ID, "rm", func(*vm.VM) error { cancel(); return nil })
	if err == nil || flushes() != full {
		t.Errorf("one whose caller goes: %v, level %d", err, flushes())
	}
	if err := s.Delete(ctx, v.ID, "rm", vm.KindDisk); err != nil || flushes() != full {
		t.Errorf("delete: %v, level %d", err, flushes())
	}
}

// What can't be made durable by the log is by the database's own file, before anything else is
// promised.
func TestALogThatCantBeFlushed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	s, ctx := open(t, path), t.Context()
	v := vm.VM{ID: "0123456789ab", Name: "web", State: vm.Stopped}
	if err := s.Create(ctx, v); err != nil {
		t.Fatal(err)
	}
	// onDisk is what is left of the VM without the log.
	onDisk := func() vm.State {
		t.Helper()
		db, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		alone := filepath.Join(t.TempDir(), "banger.db")
		if err := os.WriteFile(alone, db, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := open(t, alone).Get(ctx, "web")
		if err != nil && errs.KindOf(err) != errs.NotFound {
			t.Fatal(err)
		}
		return got.State
	}
	_, sync, err := s.Intend(ctx, v.ID, "rm", func(x *vm.VM) error { return x.To(vm.Deleting, "") })
	if err != nil || onDisk() == vm.Deleting {
		t.Fatalf("%v, and without its log the database has it %q", err, onDisk())
	}
	log := s.log
	s.log += ".gone"
	if err := sync(); err != nil || onDisk() != vm.Deleting {
		t.Errorf("%v, and without its log the database has it %q", err, onDisk())
	}
	s.holed.Store(true) // as after a commit that could not be flushed
	if err := s.Delete(ctx, v.ID, "rm"); err != nil || s.holed.Load() {
		t.Errorf("%v, holed: %t", err, s.holed.Load())
	}
	s.log = log
	s.holed.Store(true) // by another's flush: after that the kernel says of the next that all is well
	if err := sync(); err != nil || s.holed.Load() {
		t.Errorf("%v, holed: %t", err, s.holed.Load())
	}
	s.log += ".gone"
	s.Close()
	if err := sync(); errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "" {
		t.Errorf("nothing could be written, and it says %v", err)
	}
}
