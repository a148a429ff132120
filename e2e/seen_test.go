package e2e

import (
	"encoding/json"
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

// events returns what `banger events` tells after the event with this number.
func (b *banger) events(after int64) (all []api.Transition) {
	b.t.Helper()
	out := b.ok("events", "--json", "--no-follow", "--since", strconv.FormatInt(after, 10))
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var e api.Transition
		if err := dec.Decode(&e); err != nil {
			b.t.Fatalf("events: %v\n%s", err, out)
		}
		all = append(all, e)
	}
	return all
}

// Events can be followed through the death of a daemon without missing or repeating one.
func TestEventsGoOnAfterARestart(t *testing.T) {
	b := newBanger(t)
	b.vm("--name", "web", "--wait", "agent")
	first := b.events(0)
	last := first[len(first)-1].Seq
	b.killDaemon()
	b.ok("pause", "web")
	b.ok("daemon", "stop")
	b.ok("resume", "web")
	b.ok("stop", "web")
	b.ok("rm", "web")
	rest := b.events(last)
	var steps []string
	for i, e := range slices.Concat(first, rest) {
		steps = append(steps, string(e.From)+">"+string(e.To))
		if e.Seq != first[0].Seq+int64(i) || e.Name != "web" || e.Cause == "" {
			t.Errorf("event %d: %+v", i, e)
		}
	}
	want := []string{">creating", "creating>running", "running>paused", "paused>running", "running>stopping", "stopping>stopped", "stopped>deleting", "deleting>"}
	if !slices.Equal(steps, want) {
		t.Errorf("its life was %q, want %q", steps, want)
	}
}

func TestWhatIsSeenOfARunningVM(t *testing.T) {
	b := newBanger(t)
	b.vm("--name", "web", "--memory", "256M", "--cpus", "1", "--wait", "agent")
	b.ok("create", "--image", "tiny", "--name", "rests")
	if out := b.ok("ls", "--format", "{{.Name}} {{.State}} {{.Network.IP}} {{.CPUs}} {{bytes .MemoryBytes}}"); out != "web running "+b.inspect("web").Network.IP+" 1 256MiB\n" {
		t.Errorf("ls --format: %q", out)
	}
	var stats []api.Stats
	if err := json.Unmarshal([]byte(b.ok("stats", "--json")), &stats); err != nil || len(stats) != 1 {
		t.Fatalf("stats: %v, %+v", err, stats)
	}
	s := stats[0]
	if s.Name != "web" || s.CPUs != 1 || s.CPUSeconds <= 0 || s.PSSBytes < 32<<20 || s.PSSBytes > 1<<30 || s.DiskBytes <= 0 || s.Guest == nil {
		t.Errorf("stats: %+v", s)
	}
	b.ok("exec", "web", "--", "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
	if err := json.Unmarshal([]byte(b.ok("stats", "--json", "web")), &stats); err != nil || stats[0].CPUSeconds <= s.CPUSeconds {
		t.Errorf("after some work: %v, %+v; before: %+v", err, stats, s)
	}
	if out := b.ok("stats"); !strings.Contains(out, "web") || strings.Contains(out, "rests") {
		t.Errorf("stats: %s", out)
	}
	b.refused(2, []string{"-y"}, "prune")
	b.ok("prune", "-y")
	if vms := b.list(); len(vms) != 1 || vms["web"].State != api.StateRunning {
		t.Errorf("prune left %+v", vms)
	}
	b.ok("exec", "web", "--", "true")
}

// While no daemon runs a VM's machine ends and a stranger gets its process id. Neither the
// next daemon nor rm takes it for the machine.
func TestAStrangerHasTheMachinesPID(t *testing.T) {
	const lastPID = "/proc/sys/kernel/ns_last_pid"
	b := newBanger(t)
	b.vm("--name", "web", "--wait", "agent")
	pid := b.inspect("web").PID
	b.ok("daemon", "stop")
	b.signal(pid, unix.SIGKILL)
	eventually(t, "the end of the zombie", func() bool {
		_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
		return os.IsNotExist(err)
	})
	var stranger *exec.Cmd
	for range 500 { // others start processes too
		if err := os.WriteFile(lastPID, []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Skipf("SKIP: process ids can't be chosen here: %v", err)
		}
		c := exec.Command("sleep", "1000")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			c.Process.Kill()
			c.Wait()
		}()
		if c.Process.Pid == pid {
			stranger = c
			break
		}
		c.Process.Kill()
		c.Wait()
	}
	if stranger == nil {
		t.Skip("SKIP: another process has taken the id")
	}
	if v := b.inspect("web"); v.State != api.StateStopped || v.PID != 0 {
		t.Errorf("inspect: %+v", v)
	}
	b.ok("rm", "-f", "web")
	if err := stranger.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the stranger is gone: %v", err)
	}
	if state, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat")); err != nil || !strings.Contains(string(state), "(sleep) S") {
		t.Errorf("the stranger: %s, %v", state, err)
	}
}
