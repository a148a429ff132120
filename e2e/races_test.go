package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
)

// Of two daemons on one state directory one has it, each time.
func TestTwoDaemonsRace(t *testing.T) {
	b := newBanger(t)
	for round := range 50 {
		said := make(chan string)
		var daemons [2]*exec.Cmd
		for i := range daemons {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			c := exec.Command(filepath.Join(bin, "bangerd"), "--ready-fd", "3")
			c.Env = append(b.env, "BANGER_SOCKET="+filepath.Join(b.state, fmt.Sprint("race-", i))) // else the socket could decide
			c.ExtraFiles = []*os.File{w}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			daemons[i] = c
			w.Close()
			go func() {
				defer r.Close()
				var text bytes.Buffer
				text.ReadFrom(r) // until ready, or its end
				said <- text.String()
			}()
		}
		words := []string{<-said, <-said}
		ready := 0
		for _, w := range words {
			if w == "ready\n" {
				ready++
			} else if !strings.Contains(w, "another bangerd works on") {
				t.Errorf("round %d: a daemon says %q", round, w)
			}
		}
		if ready != 1 {
			t.Errorf("round %d: %d owners: %q", round, ready, words)
		}
		for _, c := range daemons {
			c.Process.Signal(unix.SIGTERM)
			c.Wait() // with 1 for the one that lost
		}
	}
}

// A client that is killed while its VM is being made leaves a whole VM or none.
func TestAClientKilledInMidCreate(t *testing.T) {
	b := newBanger(t)
	b.ok("ls")
	killed := func(after time.Duration, args ...string) {
		c := b.command(args...)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after) // the moment is what is chosen
		c.Process.Kill()
		c.Wait() // says only that it was killed, if it was
	}
	for i := range 30 {
		killed(time.Duration(rand.IntN(40))*time.Millisecond, "create", "--image", "tiny", "--name", fmt.Sprint("made-", i))
	}
	for i := range 3 {
		killed(time.Duration(100+700*i)*time.Millisecond, "run", "-d", "--image", "tiny", "--name", fmt.Sprint("run-", i), "--wait", "agent")
	}
	eventually(t, "the end of every creation", func() bool {
		for _, v := range b.list() {
			if v.State == api.StateCreating {
				return false
			}
		}
		return true
	})
	whole := ""
	for name, v := range b.consistent() {
		if v.State == api.StateStopped {
			whole = name
		}
	}
	if whole == "" {
		t.Fatal("none of 30 was made")
	}
	b.ok("start", "--wait", "agent", whole)
	b.ok("exec", whole, "--", "true")
}

// Neither a signal to the daemon nor one to its whole process group reaches a VM.
func TestSignalsToTheDaemonReachNoVM(t *testing.T) {
	b := newBanger(t)
	name := b.vm("--wait", "agent")
	pid := b.inspect(name).PID
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		daemon := b.daemonPID()
		group, err := unix.Getpgid(daemon)
		if err != nil || group != daemon {
			t.Fatalf("the daemon's process group is %d, %v", group, err)
		}
		if err := unix.Kill(-group, sig); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the daemon's end", func() bool { return b.processes("bangerd") == nil })
		if got := b.processes("qemu"); len(got) != 1 {
			t.Errorf("after %v: %q", sig, got)
		}
		if v := b.inspect(name); v.PID != pid || v.State != api.StateRunning {
			t.Errorf("after %v: %+v, it was process %d", sig, v, pid)
		}
		b.ok("exec", name, "--", "true")
	}
}

// 300 VMs that come and go leave the daemon as it was.
func TestTheDaemonDoesNotGrow(t *testing.T) {
	b := newBanger(t)
	b.ok("ls")
	pid := b.daemonPID()
	var fds, rss [2]int // a descriptor that stays open is one that the last wait below waits for in vain
	client := b.client()
	cycles := func(n int, start bool) {
		for range n {
			v, err := client.CreateVM(t.Context(), api.CreateVM{Image: "tiny", Net: "none", Start: start, Wait: "agent"}, nil)
			if err == nil {
				_, err = client.RemoveVM(t.Context(), v.ID, true, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	descriptors := func() (open int) {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	resident := func() int {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		kib := 0
		_, rest, _ := strings.Cut(string(status), "VmRSS:")
		fmt.Sscan(rest, &kib)
		return kib
	}
	for i, n := range []int{50, 250} {
		cycles(3, true)
		cycles(n-3-20, false)
		rss[i] = resident()
		for range 20 { // the least of them: what is garbage comes and goes
			cycles(1, false)
			rss[i] = min(rss[i], resident())
		}
		client.Close() // how many connections it kept open is its own affair, and the daemon hears of the end in its own time
		eventually(t, "connections are closed", func() bool {
			before := fds[i]
			fds[i] = descriptors()
			return fds[i] == before && (i == 0 || fds[i] <= fds[0])
		})
	}
	t.Logf("after 50 and 300 cycles: %v descriptors, %v KiB", fds, rss)
	if float64(rss[1]) > 1.05*float64(rss[0]) {
		t.Errorf("after 50 and 300 cycles: %v descriptors, %v KiB", fds, rss)
	}
}
