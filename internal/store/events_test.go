package store

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"banger/internal/errs"
	"banger/internal/vm"
)

func TestEventsGoOnWhereTheyWereLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	s, ctx := open(t, path), t.Context()
	at := time.Date(2026, 1, 2, 3, 4, 5, 678000, time.UTC)
	s.now = func() time.Time { return at }
	v := vm.VM{ID: "0123456789ab", Name: "web", State: vm.Creating}
	if err := s.Create(ctx, v); err != nil {
		t.Fatal(err)
	}
	changed := s.Changed()
	for _, next := range []vm.State{vm.Running, vm.Running, vm.Failed, vm.Deleting} { // staying is no event
		if _, err := s.Update(ctx, v.ID, "a cause", func(x *vm.VM) error { return x.To(next, "why "+string(next)) }); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the events")
	}
	s.Close()
	s = open(t, path) // the numbers mean the same to the next daemon
	if err := s.Delete(ctx, v.ID, "rm"); err != nil {
		t.Fatal(err)
	}
	all, err := s.Events(ctx, 0, 100)
	if err != nil || len(all) != 5 {
		t.Fatalf("got %+v, %v", all, err)
	}
	want := vm.Event{Seq: all[0].Seq + 2, At: at, VM: v.ID, Name: "web", From: vm.Running, To: vm.Failed, Cause: "a cause", Reason: "why failed"}
	if all[2] != want {
		t.Errorf("an event is %+v, want %+v", all[2], want)
	}
	if first, last := all[0], all[4]; first.From != "" || first.To != vm.Creating || last.From != vm.Deleting || last.To != "" || last.Reason != "" {
		t.Errorf("the first is %+v and the last %+v", first, last)
	}
	for i := range all {
		if rest, err := s.Events(ctx, all[i].Seq, 100); err != nil || !reflect.DeepEqual(rest, all[i+1:]) && len(rest)+len(all[i+1:]) > 0 {
			t.Errorf("after %d: %+v, %v", all[i].Seq, rest, err)
		}
	}
	if page, err := s.Events(ctx, 0, 2); err != nil || !reflect.DeepEqual(page, all[:2]) {
		t.Errorf("a page of two: %+v, %v", page, err)
	}
	if last, err := s.LastEvent(ctx); err != nil || last != all[4].Seq {
		t.Errorf("the last is %d, %v", last, err)
	}
	if none, err := s.Events(ctx, all[4].Seq+1000, 100); err != nil || len(none) > 0 {
		t.Errorf("after one to come: %+v, %v", none, err)
	}
}

func TestOldEventsAreDropped(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	if last, err := s.LastEvent(ctx); err != nil || last != 0 {
		t.Errorf("the last of none is %d, %v", last, err)
	}
	if _, err := s.db.Exec("INSERT INTO events (seq, at, vm_id, name, state, cause) VALUES (1, 0, 'x', 'x', 'x', 'x'), (2, 0, 'x', 'x', 'x', 'x'), (?, 0, 'x', 'x', 'x', 'x')", keepEvents); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(ctx, vm.VM{ID: "0123456789ab", Name: "web", State: vm.Creating}); err != nil {
		t.Fatal(err)
	}
	var seqs []int64
	all, err := s.Events(ctx, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		seqs = append(seqs, e.Seq)
	}
	if want := []int64{2, keepEvents, keepEvents + 1}; !reflect.DeepEqual(seqs, want) {
		t.Errorf("kept are %v, want %v", seqs, want)
	}
	if _, err := s.db.Exec("DELETE FROM events"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, "0123456789ab", "rm"); err != nil {
		t.Fatal(err)
	}
	if last, err := s.LastEvent(ctx); err != nil || last != keepEvents+2 {
		t.Errorf("a number was given twice: the last is %d, %v", last, err)
	}
}

func TestANewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	s := open(t, path)
	if err := s.Create(t.Context(), vm.VM{ID: "0123456789ab", Name: "web", State: vm.Creating}); err != nil {
		t.Fatal(err)
	}
	var version int
	if err := s.db.QueryRow("PRAGMA user_version").Scan(&version); err != nil {
		t.Fatal(err)
	}
	set := func(s *Store, version int) {
		t.Helper()
		if _, err := s.db.Exec(fmt.Sprintf("PRAGMA user_version = %d", version)); err != nil {
			t.Fatal(err)
		}
	}
	set(s, version+1)
	s.Close()
	_, err := Open(t.Context(), path)
	if errs.KindOf(err) != errs.Conflict || IsDamaged(err) || !strings.Contains(errs.HintOf(err), "newer banger") {
		t.Errorf("got %v; try: %s", err, errs.HintOf(err))
	}
	db, err := sql.Open("sqlite", "file:"+path) // as the newer one would: nothing is lost
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	set(&Store{db: db}, version)
	if _, err := open(t, path).Get(t.Context(), "web"); err != nil {
		t.Error(err)
	}
}

func TestADatabaseIsFreshUntilItIsComplete(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	for i, want := range []bool{true, true, false} { // the first daemon dies before it is through
		s := open(t, path)
		if s.Fresh() != want {
			t.Errorf("opening %d: fresh is %v", i, s.Fresh())
		}
		if i == 1 {
			if err := s.Complete(t.Context()); err != nil || s.Fresh() {
				t.Errorf("completed: %v, %v", s.Fresh(), err)
			}
		}
		s.Close()
	}
}
