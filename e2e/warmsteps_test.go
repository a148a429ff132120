package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
)

// act is a verb of warm starts, which is cut short at each of its steps. Each begins with the VM
// cut running, and a snapshot of it called kept where it says so.
type act struct {
	args []string
	need []string           // what is to be done before, also before it is said again
	done func(*faulty) bool // what it is for is so
	undo []string           // has it as it was before
	over bool               // the last order was for a step that it does not have
}

var shape = []string{"--image", "tiny", "--cpus", "1", "--memory", "96M", "--net", "none"}

// acts are by what they are about; those of a kind follow each other.
func acts() map[string][]*act {
	is := func(name string, want api.State) func(*faulty) bool {
		return func(f *faulty) bool { return f.list()[name].State == want }
	}
	listed := func(want int, of ...string) func(*faulty) bool {
		return func(f *faulty) bool {
			var all []struct{ Retired bool }
			if err := json.Unmarshal([]byte(f.ok(append(of, "ls", "--json")...)), &all); err != nil {
				f.t.Fatal(err)
			}
			all = slices.DeleteFunc(all, func(x struct{ Retired bool }) bool { return x.Retired })
			return len(all) == want
		}
	}
	build := append([]string{"template", "build"}, shape[1:]...)
	return map[string][]*act{
		"template": {
			{args: build, done: listed(1, "template")},
			// With --warm, for a cold start would have a template made behind the test's back.
			{args: slices.Concat([]string{"run", "-d", "--warm", "--name", "warm"}, shape), need: build, done: is("warm", api.StateRunning), undo: []string{"rm", "-f", "warm"}},
			{args: []string{"template", "prune"}, done: listed(0, "template")},
		},
		"snapshot": {
			{args: []string{"snapshot", "cut", "kept"}, done: listed(1, "snapshot")},
			{args: []string{"run", "-d", "--name", "later", "--from", "kept"}, done: is("later", api.StateRunning), undo: []string{"rm", "-f", "later"}},
			{args: []string{"snapshot", "rm", "kept"}, done: listed(0, "snapshot")},
		},
		"fork": {{args: []string{"fork", "--name", "twin", "cut"}, done: is("twin", api.StateRunning), undo: []string{"rm", "-f", "twin"}}},
		"suspend": {
			{args: []string{"suspend", "cut"}, done: is("cut", api.StateSuspended)},
			{args: []string{"resume", "cut"}, done: is("cut", api.StateRunning)},
		},
	}
}

// What saves machines, goes on from them and takes them away leaves nothing that can't be explained
// when a step of it fails, when the daemon dies there, and when all machines do: the verb works
// when it is said again, and the VM whose machine is saved goes on.
func TestEveryStepOfAWarmStartFailsAndIsCut(t *testing.T) {
	newFaulty(t) // builds, or skips
	if !*long {  // one step of each, and of templates none, for those take a boot
		all := acts()
		cutWarm(t, "kill", 10, 10, slices.Concat(all["snapshot"], all["fork"], all["suspend"]))
		return
	}
	for name := range acts() {
		for _, how := range []string{"fail", "kill", "halt"} {
			t.Run(name+" "+how, func(t *testing.T) {
				t.Parallel()
				cutWarm(t, how, 1, math.MaxInt, acts()[name])
			})
		}
	}
}

// cutWarm has the acts disturbed at steps from the first to the last.
func cutWarm(t *testing.T, how string, first, last int, acts []*act) {
	t.Helper()
	f := makeFaulty(newBanger(t))
	f.env = append(f.env, "BANGER_TEMPLATE_BUDGET=1G")
	f.source()
	seen := map[string]bool{}
	for n := first; n <= last && slices.ContainsFunc(acts, func(a *act) bool { return !a.over }); n++ {
		for _, a := range acts {
			for _, step := range f.disturb(how, n, a) {
				seen[a.args[0]+" "+step] = true
			}
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	if t.Logf("%d different steps", len(seen)); *long && len(seen) < 20 {
		t.Errorf("there were only %v", seen)
	}
	f.ok("rm", "-f", "cut")
	f.ok("daemon", "stop") // and with it what makes a template
	f.ok("template", "prune")
	if left, err := os.ReadDir(filepath.Join(f.state, "templates")); err == nil && len(left) > 0 {
		t.Errorf("left on the shelf: %v", left)
	}
}

// source sees to it that there is a VM that can be saved, and can be told from one that was booted since.
func (f *faulty) source() {
	f.t.Helper()
	if f.list()["cut"].State == api.StateRunning && f.run("", "exec", "cut", "--", "test", "-p", "/run/ask").code == 0 {
		return
	}
	f.run("", "rm", "-f", "cut")
	f.ok(slices.Concat([]string{"run", "-d", "--fresh", "--name", "cut", "--wait", "agent"}, shape)...)
	f.ok("exec", "cut", "--", "sh", "-c", counting)
}

// counts is how often the VM has been asked to count, or 0 if it can't.
func (f *faulty) counts() (n int) {
	f.t.Helper()
	if f.list()["cut"].State == api.StateRunning {
		n, _ = strconv.Atoi(strings.TrimSpace(f.run("", "exec", "cut", "--", "sh", "-c", "test -p /run/ask && "+count).out))
	}
	return n
}

// disturb does the act with trouble at its nth step and sees to it that all is well afterwards.
func (f *faulty) disturb(how string, n int, a *act) []string {
	f.t.Helper()
	if a.args[0] != "resume" {
		f.source()
	}
	if a.need != nil {
		f.ok(a.need...)
	}
	if a.over {
		f.ok(a.args...)
		if a.undo != nil {
			f.ok(a.undo...)
		}
		return nil
	}
	before := f.counts()
	f.order(how, n)
	r := f.under(how, a.args...)
	steps, struck := f.settle()
	at := "no step"
	if struck {
		at = steps[len(steps)-1]
	}
	a.over = !struck
	what := fmt.Sprintf("%s %d: %q, at %s: exit code %d", how, n, a.args[:2], at, r.code)
	f.t.Logf("%s %s", what, r.err)
	f.census()
	f.consistent()
	done := a.done(f)
	died := how == "halt" && f.list()[a.named()].State == api.StateFailed // once that was done
	if r.code == 0 && !done && !died {
		f.t.Errorf("%s: it reports success, and what it is for is not so", what)
	}
	if how == "fail" && r.code != 0 && len(r.err) < 10 {
		f.t.Errorf("%s: it does not say why it fails: %q", what, r.err)
	}
	if after := f.counts(); how != "halt" && a.args[len(a.args)-1] != "cut" && after != before+1 {
		f.t.Errorf("%s: the VM counted to %d before, and to %d now", what, before, after)
	}
	if how == "halt" && a.args[0] != "resume" && !(a.args[0] == "suspend" && done) {
		f.source()
	}
	if !done {
		f.retry(a, what)
	}
	if a.undo != nil {
		f.ok(a.undo...)
	}
	return steps
}

// retry does once more what has not been done the first time.
func (f *faulty) retry(a *act, what string) {
	f.t.Helper()
	if a.need != nil {
		f.ok(a.need...)
	}
	switch v := f.list()[a.named()]; {
	case a.args[0] == "resume" && (v.State == api.StateFailed || v.State == api.StateStopped): // its guest may have run
		f.ok("start", "--wait", "agent", "cut")
	case a.undo != nil && v.State != "": // it is there, and was not to be
		f.t.Logf("%s: left is %+v", what, v)
		f.ok(a.undo...)
		f.ok(a.args...)
	default:
		f.ok(a.args...)
	}
	if !a.done(f) {
		f.t.Errorf("%s: once more, and what it is for is not so", what)
	}
}

// named is the VM that the act is about.
func (a *act) named() string {
	if a.undo != nil {
		return a.undo[len(a.undo)-1]
	}
	return "cut"
}

// under runs a command; where the daemon halts at a step all machines are killed before it goes on.
func (f *faulty) under(how string, args ...string) result {
	f.t.Helper()
	if how != "halt" {
		return f.run("", args...)
	}
	daemon, ended := f.daemonPID(), make(chan result, 1)
	go func() { ended <- f.run("", args...) }()
	var r *result
	eventually(f.t, "the command ends or the daemon halts", func() bool {
		select {
		case got := <-ended:
			r = &got
			return true
		default:
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", daemon))
			return err == nil && bytes.Contains(stat, []byte(") T "))
		}
	})
	if r != nil {
		return *r
	}
	for pid := range f.byPID("qemu") {
		f.signal(pid, unix.SIGKILL)
	}
	if err := unix.Kill(daemon, unix.SIGCONT); err != nil {
		f.t.Fatal(err)
	}
	return <-ended
}
