package op

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/errs"
)

func TestFollowersSeeEveryStage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(t.Context())
		proceed := make(chan struct{})
		o := r.Start("build", func(_ context.Context, o *Operation) error {
			o.Stage("one", 0, 0)
			<-proceed
			o.Stage("two", 1, 10)
			o.Stage("two", 5, 10)
			o.Warn("careful")
			return errors.New("no luck")
		})
		var early []Event
		followed := make(chan struct{})
		go func() {
			defer close(followed)
			o.Follow(t.Context(), func(e Event) bool { early = append(early, e); return true })
		}()
		synctest.Wait()
		if !reflect.DeepEqual(early, []Event{{Stage: "one"}}) {
			t.Errorf("before the second stage: %v", early)
		}
		close(proceed)
		<-followed
		var late []string
		o.Follow(t.Context(), func(e Event) bool { late = append(late, e.Stage+e.Warning); return true })
		if want := []string{"one", "two", "careful", ""}; !reflect.DeepEqual(late, want) {
			t.Errorf("a late follower saw %q, want %q", late, want)
		}
		if last := early[len(early)-1]; !last.Finished || last.Err.Error() != "no luck" {
			t.Errorf("the last event is %+v", last)
		}
		if err := o.Wait(t.Context()); err == nil || err.Error() != "no luck" {
			t.Errorf("Wait returned %v", err)
		}
	})
}

// Stages that go on side by side take no more room the longer they do.
func TestStagesSideBySide(t *testing.T) {
	r := NewRegistry(t.Context())
	o := r.Start("pull", func(_ context.Context, o *Operation) error {
		for n := range int64(1000) {
			o.Stage("one", n, 1000)
			o.Stage("two", n, 2000)
		}
		o.Made("app:1")
		return nil
	})
	if err := o.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []Event
	o.Follow(t.Context(), func(e Event) bool { got = append(got, e); return true })
	want := []Event{{Stage: "one", Done: 999, Total: 1000}, {Stage: "two", Done: 999, Total: 2000}, {Finished: true, Made: "app:1"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("a late follower saw %+v", got)
	}
}

func TestCancelReachesTheWork(t *testing.T) {
	r := NewRegistry(t.Context())
	o := r.Start("wait", func(ctx context.Context, _ *Operation) error {
		<-ctx.Done()
		return ctx.Err()
	})
	o.Cancel()
	if err := o.Wait(t.Context()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := r.Drain(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOldOperationsAreForgotten(t *testing.T) {
	r := NewRegistry(t.Context())
	var first, last *Operation
	for i := range keepFinished + 1 {
		last = r.Start("x", func(context.Context, *Operation) error { return nil })
		if err := r.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = last
		}
	}
	if _, err := r.Get(first.ID); errs.KindOf(err) != errs.NotFound {
		t.Errorf("the first is still known: %v", err)
	}
	if _, err := r.Get(last.ID); err != nil {
		t.Error(err)
	}
}

func TestLockNamesItsHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Locks
		unlock, err := l.Lock(t.Context(), "a", "started")
		if err != nil {
			t.Fatal(err)
		}
		if other, err := l.Lock(t.Context(), "b", "stopped"); err != nil {
			t.Errorf("another VM's lock: %v", err)
		} else {
			other()
		}
		begin := time.Now()
		if _, err = l.Lock(t.Context(), "a", "removed"); errs.KindOf(err) != errs.Busy || err.Error() != "the VM is being started" {
			t.Errorf("got %v", err)
		}
		if waited := time.Since(begin); waited != lockPatience {
			t.Errorf("gave up after %v", waited)
		}
		got := make(chan error)
		go func() {
			again, err := l.Lock(t.Context(), "a", "removed")
			if err == nil {
				again()
			}
			got <- err
		}()
		synctest.Wait()
		unlock()
		if err := <-got; err != nil {
			t.Errorf("after the holder was done: %v", err)
		}
	})
}
