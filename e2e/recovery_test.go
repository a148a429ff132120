package e2e

import (
	"testing"

	"banger/api"
)

// A recovery that fails or is itself cut at any of its steps is made up for by the next
// one, or says what is wrong and can be put right by verbs.
func TestEveryStepOfARecoveryFailsAndIsCut(t *testing.T) {
	for _, how := range []string{"fail", "kill"} {
		t.Run(how, func(t *testing.T) {
			f := newFaulty(t)
			f.vm("--name", "runs", "--wait", "agent", "--memory", "96M")
			f.ok("create", "--image", "tiny", "--name", "rests")
			pid := f.inspect("runs").PID
			for n, struck := 1, true; struck && !t.Failed(); n++ {
				f.order("kill", 8) // when there is a directory and a disk
				if r := f.run("", "create", "--image", "tiny", "--name", "half"); r.code == 0 {
					t.Error("a daemon that died has made a VM")
				}
				f.settle()
				f.order(how, n)
				r := f.run("", "ls")
				if how == "kill" {
					f.run("", "exec", "runs", "--", "true") // finds the guest again
				}
				var steps []string
				steps, struck = f.settle()
				t.Logf("%s %d at %q: exit code %d %s", how, n, steps[max(0, len(steps)-1):], r.code, r.err)
				f.census()
				vms := f.list()
				if half, there := vms["half"]; there {
					if how == "kill" || half.State != api.StateFailed || half.Error == "" {
						t.Errorf("half a VM: %+v", half)
					}
					f.ok("rm", "half")
				}
				if runs := vms["runs"]; runs.State == api.StateFailed && runs.Error != "" && how == "fail" {
					f.ok("start", "--wait", "agent", "runs")
					pid = f.inspect("runs").PID
				} else if runs.State != api.StateRunning || runs.PID != pid {
					t.Errorf("%+v was process %d", runs, pid)
				}
				f.consistent()
				f.killDaemon()
				if rests := f.list()["rests"]; rests.State != api.StateStopped {
					t.Errorf("%+v", rests)
				}
			}
		})
	}
}
