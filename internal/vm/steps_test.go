package vm_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/errs"
	"banger/internal/op"
	"banger/internal/vm"
)

// verb is something that a person asks for, on the VM web.
type verb struct {
	name    string
	prepare []string // verbs that bring the VM to where this one begins
	run     func(ctx context.Context, m *vm.Manager, o *op.Operation, id string) error
	may     []vm.State // where the VM can be when the verb was cut short, last where it leads; "" is: it is not there
	failed  bool       // it may also have failed, if a guest that ran could not be reached
	warm    bool       // there are templates
	pool    bool       // a VM is kept ready
}

var verbs = []verb{
	{name: "create", may: []vm.State{"", vm.Running}, failed: true,
		run: func(ctx context.Context, m *vm.Manager, o *op.Operation, _ string) error {
			_, err := m.Create(ctx, o, vm.Request{Name: "web", Start: true})
			return err
		}},
	{name: "create --stopped", may: []vm.State{"", vm.Stopped},
		run: func(ctx context.Context, m *vm.Manager, o *op.Operation, _ string) error {
			_, err := m.Create(ctx, o, vm.Request{Name: "web"})
			return err
		}},
	{name: "create --rm", may: []vm.State{"", vm.Running},
		run: func(ctx context.Context, m *vm.Manager, o *op.Operation, _ string) error {
			_, err := m.Create(ctx, o, vm.Request{Name: "web", Start: true, AutoRemove: true})
			return err
		}},
	{name: "make template", may: []vm.State{""}, warm: true, run: doMakeTemplate},
	{name: "create warm", prepare: []string{"make template"}, may: []vm.State{"", vm.Running}, failed: true, warm: true,
		run: func(ctx context.Context, m *vm.Manager, o *op.Operation, _ string) error {
			_, err := m.Create(ctx, o, vm.Request{Name: "web", Start: true})
			return err
		}},
	{name: "create --stopped warm", prepare: []string{"make template"}, may: []vm.State{"", vm.Stopped}, warm: true,
		run: func(ctx context.Context, m *vm.Manager, o *op.Operation, _ string) error {
			_, err := m.Create(ctx, o, vm.Request{Name: "web"})
			return err
		}},
	{name: "fill the pool", may: []vm.State{""}, pool: true,
		run: func(ctx context.Context, m *vm.Manager, o *op.Operation, _ string) error { return m.FillPool(ctx, o) }},
	{name: "create from the pool", prepare: []string{"fill the pool"}, may: []vm.State{"", vm.Running}, failed: true, pool: true,
		run: func(ctx context.Context, m *vm.Manager, o *op.Operation, _ string) error {
			_, err := m.Create(ctx, o, vm.Request{Name: "web", Start: true})
			return err
		}},
	{name: "start warm", prepare: []string{"create --stopped warm"}, may: []vm.State{vm.Stopped, vm.Running}, failed: true, warm: true, run: doStart},
	{name: "start", prepare: []string{"create --stopped"}, may: []vm.State{vm.Stopped, vm.Running}, failed: true, run: doStart},
	{name: "start again", prepare: []string{"create", "stop"}, may: []vm.State{vm.Stopped, vm.Running}, failed: true, run: doStart},
	{name: "stop", prepare: []string{"create"}, may: []vm.State{vm.Running, vm.Stopped}, failed: true, run: doStop(time.Minute)},
	{name: "stop --rm", prepare: []string{"create --rm"}, may: []vm.State{vm.Running, ""}, failed: true, run: doStop(time.Minute)},
	{name: "stop paused", prepare: []string{"create", "pause"}, may: []vm.State{vm.Paused, vm.Stopped}, failed: true, run: doStop(time.Minute)},
	{name: "kill", prepare: []string{"create"}, may: []vm.State{vm.Running, vm.Stopped}, failed: true, run: doStop(0)},
	{name: "restart", prepare: []string{"create"}, may: []vm.State{vm.Stopped, vm.Running}, failed: true, run: doRestart},
	{name: "restart stopped", prepare: []string{"create --stopped"}, may: []vm.State{vm.Stopped, vm.Running}, failed: true, run: doRestart},
	{name: "pause", prepare: []string{"create"}, may: []vm.State{vm.Running, vm.Paused},
		run: func(ctx context.Context, m *vm.Manager, _ *op.Operation, id string) error {
			_, err := m.Pause(ctx, id)
			return err
		}},
	{name: "resume", prepare: []string{"create", "pause"}, may: []vm.State{vm.Paused, vm.Running},
		run: doResume},
	{name: "suspend", prepare: []string{"create"}, may: []vm.State{vm.Running, vm.Suspended}, run: doSuspend},
	{name: "suspend paused", prepare: []string{"create", "pause"}, may: []vm.State{vm.Paused, vm.Suspended}, run: doSuspend},
	{name: "resume suspended", prepare: []string{"create", "suspend"}, may: []vm.State{vm.Suspended, vm.Stopped, vm.Running}, failed: true,
		run: func(ctx context.Context, m *vm.Manager, o *op.Operation, id string) error {
			if v, err := m.Find(ctx, id); err != nil || v.State == vm.Stopped || v.State == vm.Failed { // the first try came too far
				return doStart(ctx, m, o, id)
			}
			return doResume(ctx, m, o, id)
		}},
	{name: "start suspended afresh", prepare: []string{"create", "suspend"}, may: []vm.State{vm.Suspended, vm.Stopped, vm.Running}, failed: true,
		run: func(ctx context.Context, m *vm.Manager, o *op.Operation, id string) error {
			_, err := m.Start(ctx, o, id, "", vm.Cold)
			return err
		}},
	{name: "snapshot", prepare: []string{"create"}, may: []vm.State{vm.Paused, vm.Running},
		run: func(ctx context.Context, m *vm.Manager, o *op.Operation, id string) error {
			_, err := m.Snapshot(ctx, o, id, "")
			return err
		}},
	{name: "fork", prepare: []string{"create"}, may: []vm.State{vm.Paused, vm.Running},
		run: func(ctx context.Context, m *vm.Manager, o *op.Operation, id string) error {
			_, err := m.Fork(ctx, o, id, 1, vm.Request{AutoRemove: true})
			return err
		}},
	{name: "rm suspended", prepare: []string{"create", "suspend"}, may: []vm.State{vm.Suspended, ""}, failed: true, run: doRemove},
	{name: "rm", prepare: []string{"create --stopped"}, may: []vm.State{vm.Stopped, ""}, failed: true, run: doRemove},
	{name: "rm -f", prepare: []string{"create"}, may: []vm.State{vm.Running, ""}, failed: true, run: doRemove},
	{name: "rm -f paused", prepare: []string{"create", "pause"}, may: []vm.State{vm.Paused, ""}, failed: true, run: doRemove},
}

func doStart(ctx context.Context, m *vm.Manager, o *op.Operation, id string) error {
	_, err := m.Start(ctx, o, id, "", "")
	return err
}

func doResume(ctx context.Context, m *vm.Manager, o *op.Operation, id string) error {
	_, err := m.Resume(ctx, o, id)
	return err
}

func doSuspend(ctx context.Context, m *vm.Manager, o *op.Operation, id string) error {
	_, err := m.Suspend(ctx, o, id)
	return err
}

func doMakeTemplate(ctx context.Context, m *vm.Manager, o *op.Operation, _ string) error {
	_, err := m.MakeTemplate(ctx, o, vm.Request{})
	return err
}

func doRestart(ctx context.Context, m *vm.Manager, o *op.Operation, id string) error {
	_, err := m.Restart(ctx, o, id, time.Minute, "")
	return err
}

func doStop(limit time.Duration) func(context.Context, *vm.Manager, *op.Operation, string) error {
	return func(ctx context.Context, m *vm.Manager, o *op.Operation, id string) error {
		_, err := m.Stop(ctx, o, id, limit)
		return err
	}
}

func doRemove(ctx context.Context, m *vm.Manager, _ *op.Operation, id string) error {
	return m.Delete(ctx, id, true)
}

func verbNamed(name string) verb {
	return verbs[slices.IndexFunc(verbs, func(v verb) bool { return v.name == name })]
}

// do runs the verb as the server does, to its end.
func (v verb) do(t *testing.T, m *vm.Manager) error {
	web, err := m.Find(t.Context(), "web")
	if err != nil && errs.KindOf(err) != errs.NotFound {
		return err
	}
	_, err = operation(t, func(ctx context.Context, o *op.Operation) error { return v.run(ctx, m, o, web.ID) })
	synctest.Wait() // for the watchers of machines that ended
	return err
}

// trial is one verb with trouble at one of its steps.
type trial struct {
	*testing.T
	w    *world
	m    *vm.Manager
	end  func()
	verb verb
	was  vm.VM // before
	what string
}

// begin brings the VM to where the verb begins.
func (c *trial) begin() {
	if c.verb.name == "make template" { // which does nothing where there is one
		if _, err := c.m.PruneTemplates(c.Context(), 0, ""); err != nil {
			c.Fatal(err)
		}
	}
	for _, name := range c.verb.prepare {
		if err := verbNamed(name).do(c.T, c.m); err != nil {
			c.Fatalf("prepare %s by %s: %v", c.verb.name, name, err)
		}
	}
	c.was, _ = c.m.Find(c.Context(), "web")
}

// state returns the VM's state, or "" if it is not there.
func (c *trial) state() vm.State {
	v, err := c.m.Find(c.Context(), "web")
	switch {
	case errs.KindOf(err) == errs.NotFound:
		return ""
	case err != nil:
		c.Fatal(err)
	case c.was.ID != "" && v.ID != c.was.ID:
		c.Errorf("%s: VM %s has become %s", c.what, c.was.ID, v.ID)
	}
	return v.State
}

// judge looks at the table and the host, has the verb done again, and clears up.
func (c *trial) judge(cut bool, err error) {
	synctest.Wait()
	for _, text := range c.w.audit(c.m, !cut) {
		c.Errorf("%s: %s", c.what, text)
	}
	s := c.state()
	ok := slices.Contains(c.verb.may, s) || !cut && c.verb.failed && s == vm.Failed
	if !cut && err != nil { // on its way to where the verb leads, or not stopped, so that it goes on
		ok = ok || s == vm.Stopping || s == vm.Deleting || s == vm.Running && c.was.State == vm.Paused
	}
	if !ok {
		c.Errorf("%s: the VM is %q", c.what, s)
	}
	c.again(s)
	for _, text := range c.w.clear(c.m) {
		c.Errorf("%s: at the end: %s", c.what, text)
	}
}

// again has the verb done once more. It must work, unless the first time did its work after
// all and there is nothing more to do.
func (c *trial) again(s vm.State) {
	done := len(c.was.ID) == 0 && s != "" || // there is such a VM already
		s == vm.Running && strings.HasPrefix(c.verb.name, "start") ||
		s == "" && c.was.ID != ""
	err := c.verb.do(c.T, c.m)
	kind := errs.KindOf(err)
	switch {
	case done && (kind == errs.Conflict || kind == errs.NotFound):
	case done || err != nil:
		c.Errorf("%s: the VM was %q, and the second try gave: %v", c.what, s, err)
	}
	for _, text := range c.w.audit(c.m, false) {
		c.Errorf("%s: after the second try: %s", c.what, text)
	}
}

// inWorld runs a test in a world whose waits cost nothing.
func inWorld(t *testing.T, test func(*testing.T, *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.level = slog.LevelError + 1
		test(t, w)
	})
}

// Every step of every verb fails once, before it is taken or after; and at every step the
// daemon dies once, and another takes over.
func TestEveryStepFailsAndEveryStepIsCut(t *testing.T) {
	for _, v := range verbs {
		for _, does := range []trouble{fails, cuts} {
			t.Run(v.name+" "+string(does), func(t *testing.T) {
				t.Parallel()
				inWorld(t, func(t *testing.T, w *world) {
					v.furnish(w)
					steps := v.trials(t, w, does)
					if least := 4; steps < least {
						t.Errorf("%s has %d steps only", v.name, steps)
					}
					t.Logf("%d steps", steps)
				})
			})
		}
	}
}

// furnish gives a world what the verb takes.
func (v verb) furnish(w *world) {
	if v.warm {
		w.budget = 1 << 30
	}
	if v.pool {
		w.pool = vm.PoolSize{Images: map[string]int{"tiny": 1}, Bytes: 1 << 30}
	}
}

// trials has the trouble at each step in turn and returns how many there were.
func (v verb) trials(t *testing.T, w *world, does trouble) (steps int) {
	c := &trial{T: t, w: w, verb: v}
	c.m, c.end = w.daemon()
	defer func() { c.end() }()
	for n := 1; ; n++ {
		c.begin()
		w.gate.arm(n, does)
		err := v.do(t, c.m)
		if does == cuts {
			c.end()
		}
		where, passed := w.gate.disarm()
		c.what = fmt.Sprintf("%s, step %d of it (%s) %s", v.name, n, where, does)
		if does == cuts {
			c.m, c.end = w.daemon()
		}
		if where == "" && err != nil {
			t.Fatalf("%s without trouble: %v", v.name, err)
		}
		if does == cuts && where != "" && err == nil && c.state() != v.may[len(v.may)-1] {
			t.Errorf("%s: acknowledged, and the VM is %q", c.what, c.state())
		}
		c.judge(does == cuts, err)
		if where == "" {
			return passed
		}
	}
}

// Recovery is cut too, at each of its own steps, after a verb was cut at each of its.
func TestRecoveryIsCut(t *testing.T) {
	for _, name := range []string{"create", "make template", "fill the pool", "create --rm", "start again", "stop", "pause", "rm -f"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inWorld(t, func(t *testing.T, w *world) {
				verbNamed(name).furnish(w)
				trials := verbNamed(name).recoveries(t, w)
				t.Logf("%d pairs of steps", trials)
			})
		})
	}
}

func (v verb) recoveries(t *testing.T, w *world) (trials int) {
	c := &trial{T: t, w: w, verb: v}
	c.m, c.end = w.daemon()
	defer func() { c.end() }()
	for first, last := 1, false; !last; first++ {
		for second, reached := 1, true; reached; second++ {
			c.begin()
			w.gate.arm(first, cuts)
			err := v.do(t, c.m)
			c.end()
			where, _ := w.gate.disarm()
			last = where == ""
			w.gate.arm(second, cuts)
			_, end, _ := w.open()
			end()
			again, _ := w.gate.disarm()
			reached = again != ""
			c.what = fmt.Sprintf("%s cut at step %d (%s), recovery at %d (%s)", v.name, first, where, second, again)
			c.m, c.end = w.daemon()
			c.judge(true, err)
			trials++
		}
	}
	return trials
}
