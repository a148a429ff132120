package vm_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/errs"
	"banger/internal/op"
	"banger/internal/vm"
)

// A client can vanish at every step of a creation, with its lease or by cancelling: what
// stays is a whole VM or none, and with a lease it is none.
func TestAClientVanishesInMidCreate(t *testing.T) {
	for _, leased := range []bool{false, true} {
		t.Run(fmt.Sprintf("leased %v", leased), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				m, end := w.daemon()
				defer end()
				for n, where := 1, "somewhere"; where != ""; n++ {
					where = vanish(t, w, m, n, leased)
				}
			})
		})
	}
}

// vanish creates a VM whose client goes at the nth step.
func vanish(t *testing.T, w *world, m *vm.Manager, n int, leased bool) (where string) {
	req := vm.Request{Name: "web", Start: true}
	ops := op.NewRegistry(t.Context())
	var o *op.Operation
	known := make(chan struct{})
	gone := func() { <-known; o.Cancel() }
	if leased {
		req.Lease = m.OpenLease()
		gone = func() {
			ops.Start("end lease", func(ctx context.Context, _ *op.Operation) error { return m.EndLease(ctx, req.Lease) })
		}
	}
	w.gate.call = gone
	w.gate.arm(n, calls)
	o = ops.Start("create", func(ctx context.Context, o *op.Operation) error {
		_, err := m.Create(ctx, o, req)
		return err
	})
	close(known)
	err := o.Wait(t.Context())
	synctest.Wait()
	where, _ = w.gate.disarm()
	for _, text := range w.audit(m, false) {
		t.Errorf("gone at step %d (%s): %s", n, where, text)
	}
	v, found := m.Find(t.Context(), "web")
	there := found == nil
	switch {
	case where == "" && err != nil:
		t.Fatalf("a creation that nobody left: %v", err)
	case there && (leased && where != "" || err != nil || v.State != vm.Running), !there && err == nil && !leased:
		t.Errorf("gone at step %d (%s): it is there: %v, as %q; the error is %v", n, where, there, v.State, err)
	}
	for _, text := range w.clear(m) {
		t.Errorf("gone at step %d (%s): %s", n, where, text)
	}
	return where
}

// A guest that takes its time to boot holds nobody up who has gone.
func TestALeaseThatEndsDuringBootEndsTheBoot(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m, end := w.daemon()
		defer end()
		w.set(func() { w.silent = true })
		lease, began := m.OpenLease(), time.Now()
		o := op.NewRegistry(t.Context()).Start("create", func(ctx context.Context, o *op.Operation) error {
			_, err := m.Create(ctx, o, vm.Request{Name: "web", Start: true, Lease: lease})
			return err
		})
		synctest.Wait() // until it waits for the guest
		if err := m.EndLease(t.Context(), lease); err != nil {
			t.Error(err)
		}
		if err := o.Wait(t.Context()); err == nil || time.Since(began) > time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if found := w.census(); found != nil {
			t.Errorf("left behind: %v", found)
		}
	})
}

func TestAVMThatCannotGoDoesNotHideTheOthersOfItsLease(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	lease := m.OpenLease()
	for _, name := range []string{"a", "b"} {
		if _, err := create(t, m, vm.Request{Name: name, Lease: lease}); err != nil {
			t.Fatal(err)
		}
	}
	w.set(func() { w.fail = "remove" })
	if err := m.EndLease(t.Context(), lease); err == nil || strings.Count(err.Error(), "remove fails") != 2 {
		t.Errorf("got %v", err)
	}
	w.set(func() { w.fail = "" })
	if wrong := w.clear(m); wrong != nil {
		t.Errorf("left: %v", wrong)
	}
}

func TestOneWinnerForEachName(t *testing.T) {
	const callers, names = 32, 50
	inWorld(t, func(t *testing.T, w *world) {
		m, end := w.daemon()
		defer end()
		var (
			wg   sync.WaitGroup
			mu   sync.Mutex
			won  = map[string]string{}
			lost int
		)
		ops := op.NewRegistry(t.Context())
		for range callers {
			wg.Go(func() {
				for i := range names {
					var v vm.VM
					err := ops.Start("create", func(ctx context.Context, o *op.Operation) (err error) {
						v, err = m.Create(ctx, o, vm.Request{Name: fmt.Sprintf("same-%d", i), Start: i%2 == 0})
						return err
					}).Wait(t.Context())
					mu.Lock()
					switch {
					case err == nil && won[v.Name] == "":
						won[v.Name] = v.ID
					case errs.KindOf(err) == errs.Conflict:
						lost++
					default:
						t.Errorf("%s: %v, %v", v.Name, v.ID, err)
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if len(won) != names || lost != (callers-1)*names {
			t.Errorf("%d won and %d lost", len(won), lost)
		}
		for name, id := range won {
			if v, err := m.Find(t.Context(), name); err != nil || v.ID != id {
				t.Errorf("%s is VM %s (%v), and its creator was told %s", name, v.ID, err, id)
			}
		}
		if wrong := append(w.audit(m, false), w.clear(m)...); wrong != nil {
			t.Errorf("%v", wrong)
		}
	})
}

func TestCancelledVerbsLeaveTheVMWhole(t *testing.T) {
	for _, name := range []string{"start", "stop", "restart", "pause", "resume", "rm -f"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inWorld(t, func(t *testing.T, w *world) {
				c := &trial{T: t, w: w, verb: verbNamed(name)}
				c.m, c.end = w.daemon()
				defer c.end()
				for n, where := 1, "somewhere"; where != ""; n++ {
					c.begin()
					ctx, cancel := context.WithCancel(t.Context())
					w.gate.call = cancel
					w.gate.arm(n, calls)
					_, err := operation(t, func(_ context.Context, o *op.Operation) error { return c.verb.run(ctx, c.m, o, c.was.ID) })
					cancel()
					where, _ = w.gate.disarm()
					c.what = fmt.Sprintf("%s, cancelled at step %d (%s)", name, n, where)
					if err != nil && !errors.Is(err, context.Canceled) {
						t.Errorf("%s: %v", c.what, err)
					}
					c.judge(true, err)
				}
			})
		})
	}
}
