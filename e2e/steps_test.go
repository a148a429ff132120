package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
)

// faulty is a banger whose daemon can be told to fail or to die at a step; see host.Fault.
type faulty struct {
	*banger
	orders string // the file with what it is to do
	dying  int    // a pidfd of the daemon that is to die, if one ran when it was told so
}

func newFaulty(t *testing.T) *faulty {
	t.Helper()
	return makeFaulty(newBanger(t))
}

func makeFaulty(b *banger) *faulty {
	t := b.t
	t.Helper()
	b.bin = bin + "-faults"
	if os.Getenv("BANGER_BIN") == "" { // else they are there already
		if out, err := exec.Command("make", "--no-print-directory", "-C", "..", "build-faults").CombinedOutput(); err != nil {
			t.Fatalf("make build-faults: %v\n%s", err, out)
		}
	}
	f := &faulty{banger: b, orders: filepath.Join(t.TempDir(), "orders")}
	b.env = append(b.env, "BANGER_FAULTS="+f.orders)
	return f
}

// order has the nth step from now on fail, or kill the daemon, or halt it.
func (f *faulty) order(how string, n int) {
	f.t.Helper()
	if d, err := f.client().Daemon(f.t.Context()); err == nil && how == "kill" {
		if f.dying, err = unix.PidfdOpen(d.PID, 0); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := os.WriteFile(f.orders, []byte(how+" "+strconv.Itoa(n)+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// settle withdraws the order. It returns the steps since it was given, and whether it was
// carried out, at the last of them.
func (f *faulty) settle() (steps []string, struck bool) {
	f.t.Helper()
	text, err := os.ReadFile(f.orders)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.Remove(f.orders); err != nil {
		f.t.Fatal(err)
	}
	order, passed, _ := strings.Cut(string(text), "\n")
	struck = order == ""
	if f.dying > 0 {
		if struck { // its socket may outlive its connections for a moment
			f.ends(f.dying)
		}
		unix.Close(f.dying)
		f.dying = 0
	}
	return strings.Fields(strings.ReplaceAll(passed, " ", "_")), struck
}

// stepped is a verb that is cut short at each of its steps. The verbs follow each other:
// each finds the VM as the one before left it.
type stepped struct {
	args []string
	goal api.State // of the VM when the verb is done; empty: it is gone
	done bool      // the last order was for a step that it does not have
}

// A verb that fails at any of its steps, or whose daemon dies there, leaves nothing that
// can't be explained, and a VM with which every verb works.
func TestEveryStepFailsAndIsCut(t *testing.T) {
	newFaulty(t) // builds, or skips
	for _, how := range []string{"fail", "kill"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel() // two at most, one for each core
			f := newFaulty(t)
			seen := f.cutAll(how, 1, "--net", "none")
			for _, must := range []string{"run before_store_create", "run rename_a_new_disk", "run after_store_started", "pause after_machine_pause", "resume after_machine_resume", "stop before_guest_shutdown",
				"start after_machine_launch", "start rename_a_copy_of_a_row", "rm after_machine_remove", "rm after_store_delete"} {
				if !seen[must] {
					t.Errorf("no %s was ever reached; there were %v", must, seen)
				}
			}
		})
	}
}

// cutAll has the verbs of a VM's life cut short at their steps, or at every so many of them, and
// returns all steps that it has seen. The VM is made with these flags.
func (f *faulty) cutAll(how string, every int, flags ...string) (seen map[string]bool) {
	f.t.Helper()
	small := append([]string{"--image", "tiny", "--cpus", "1", "--memory", "96M", "--wait", "agent"}, flags...)
	verbs := []*stepped{
		{args: append([]string{"run", "-d", "--name", "cut"}, small...), goal: api.StateRunning},
		{args: []string{"pause", "cut"}, goal: api.StatePaused},
		{args: []string{"resume", "cut"}, goal: api.StateRunning},
		{args: []string{"stop", "cut"}, goal: api.StateStopped},
		{args: []string{"start", "--wait", "agent", "cut"}, goal: api.StateRunning},
		{args: []string{"rm", "-f", "cut"}},
	}
	f.ok("ls") // what a first start does is no step of a verb
	seen = map[string]bool{}
	rounds := 0
	for n := 1; slices.ContainsFunc(verbs, func(v *stepped) bool { return !v.done }); n += every {
		rounds++
		for _, v := range verbs {
			for _, step := range f.cut(how, n, v) {
				seen[v.args[0]+" "+step] = true
			}
		}
		if f.t.Failed() {
			f.t.FailNow()
		}
	}
	f.t.Logf("%d rounds, %d different steps", rounds, len(seen))
	return seen
}

// cut runs the verb with the order given and sees to it that all is well afterwards.
func (f *faulty) cut(how string, n int, v *stepped) []string {
	f.t.Helper()
	if v.done {
		f.ok(v.args...)
		return nil
	}
	f.order(how, n)
	r := f.run("", v.args...)
	steps, struck := f.settle()
	at := "before any step"
	if len(steps) > 0 {
		at = steps[len(steps)-1]
	}
	v.done = !struck
	f.t.Logf("%s %d: %s, at %s: exit code %d %s", how, n, v.args[0], at, r.code, r.err)
	if how == "kill" && struck && r.code == 0 {
		f.t.Errorf("it reports success")
	}
	f.census()
	vm := f.consistent()["cut"]
	if r.code == 0 && vm.State != v.goal {
		f.t.Errorf("it reports success and the VM is %q: %s", vm.State, vm.Error)
	}
	if how == "fail" && struck && r.code != 0 && len(r.err) < 10 {
		f.t.Errorf("it does not say why it fails: %q", r.err)
	}
	f.again(v, vm)
	return steps
}

// again brings the VM to where the verb should have: by that verb, wherever it still fits.
func (f *faulty) again(v *stepped, vm api.VM) {
	f.t.Helper()
	if vm.State == v.goal {
		return
	}
	switch {
	case v.args[0] == "run" && vm.State != "":
		f.ok("rm", "-f", "cut")
	case v.goal == api.StateStopped && vm.State == api.StateFailed: // a verb for what runs
		f.ok("start", "--wait", "agent", "cut")
	}
	f.ok(v.args...)
	if got := f.list()["cut"].State; got != v.goal {
		f.t.Errorf("%s once more: the VM is %q", v.args[0], got)
	}
}

// consistent checks that what the daemon tells fits together and fits the host. It returns
// the VMs by name.
func (b *banger) consistent() map[string]api.VM {
	b.t.Helper()
	vms, machines := b.list(), 0
	for name, v := range vms {
		if one := b.inspect(name); one.State != v.State || one.PID != v.PID || one.ID != v.ID {
			b.t.Errorf("ls has %+v, inspect %+v", v, one)
		}
		switch v.State {
		case api.StateRunning, api.StatePaused:
			machines++
			if line, err := os.ReadFile("/proc/" + strconv.Itoa(v.PID) + "/cmdline"); err != nil || !strings.Contains(string(line), v.ID) {
				b.t.Errorf("%s is %s with process %d, which is %q, %v", name, v.State, v.PID, line, err)
			}
		case api.StateStopped, api.StateFailed, api.StateSuspended:
			if v.PID != 0 {
				b.t.Errorf("%s is %s with process %d", name, v.State, v.PID)
			}
			if v.State == api.StateFailed && v.Error == "" {
				b.t.Errorf("%s is failed without a reason", name)
			}
		default:
			b.t.Errorf("%s is left %s", name, v.State)
		}
		if v.State == api.StateRunning {
			b.ok("exec", name, "--", "true")
		}
	}
	if found := b.machines(); len(found) != machines {
		b.t.Errorf("%d VMs have a machine and there are %d: %q", machines, len(found), found)
	}
	return vms
}
