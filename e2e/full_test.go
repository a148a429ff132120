package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// On a disk that fills up whatever was acknowledged stays, and rm works, by a daemon that
// runs and by one that is only then started.
func TestADiskThatFillsUp(t *testing.T) {
	for i, size := range []string{"18500k", "19m", "20m", "22m", "24m"} {
		t.Run(size, func(t *testing.T) {
			b := bangerIn(t, tmpfs(t, size))
			var made []string
			for n := range 30 {
				name := fmt.Sprint("vm-", n)
				if r := b.run("", "create", "--image", "tiny", "--name", name); r.code == 0 {
					made = append(made, name)
				} else if !strings.Contains(r.err, "no space") && !strings.Contains(r.err, "no room") && !strings.Contains(r.err, "full") {
					t.Errorf("create %d: %+v", n, r)
				}
			}
			if len(made) == 0 {
				t.Fatal("no VM could be made before the disk was full")
			}
			b.fill()
			if r := b.run("", "create", "--image", "tiny", "--name", "too-much"); r.code == 0 {
				t.Error("a VM was made on a full disk")
			}
			if i%2 == 1 {
				b.killDaemon()
			}
			if got := b.consistent(); len(got) != len(made) {
				t.Errorf("%d VMs were acknowledged and %d are there: %+v", len(made), len(got), got)
			}
			for _, name := range made {
				b.fill()
				b.ok("rm", name)
			}
			if got := b.list(); len(got) > 0 {
				t.Errorf("rm left %+v", got)
			}
			if err := os.Remove(filepath.Join(b.state, "ballast")); err != nil {
				t.Error(err)
			}
			b.ok("create", "--image", "tiny")
		})
	}
}

// fill takes all the room that is left.
func (b *banger) fill() {
	b.t.Helper()
	f, err := os.OpenFile(filepath.Join(b.state, "ballast"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(bytes.Repeat([]byte{1}, size))
		}
		if err != nil && !strings.Contains(err.Error(), "no space") {
			b.t.Fatal(err)
		}
	}
}

// A daemon that may open no more files says so or waits; it loses nothing.
func TestADaemonWithoutDescriptors(t *testing.T) {
	b := newBanger(t)
	b.ok("create", "--image", "tiny", "--name", "kept")
	b.vm("--name", "runs", "--wait", "agent")
	pid := b.daemonPID()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"kept": true, "runs": true}
	for more := range 14 {
		tight := unix.Rlimit{Cur: uint64(len(entries) + more), Max: was.Max}
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &tight, nil); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint("vm-", more)
		for _, args := range [][]string{{"create", "--image", "tiny", "--name", name}, {"start", "--wait", "agent", "kept"}, {"kill", "kept"}, {"rm", name}} {
			c := b.command(args...)
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- c.Wait() }()
			select {
			case err = <-ended:
			case <-time.After(3 * time.Second): // no descriptor to hear it with
				c.Process.Signal(unix.SIGKILL)
				err = <-ended
			}
			switch {
			case args[0] == "create" && err == nil:
				want[name] = true
			case args[0] == "rm" && err == nil:
				delete(want, name)
			}
		}
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil); err != nil {
			t.Fatal(err)
		}
		b.ok("exec", "runs", "--", "true")
		eventually(t, "verbs that were begun end", func() bool {
			for _, v := range b.list() {
				if v.State != "stopped" && v.State != "failed" && v.State != "running" {
					return false
				}
			}
			return b.run("", "system", "census").code == 0
		})
		for name := range want {
			if _, ok := b.list()[name]; !ok && name != fmt.Sprint("vm-", more) {
				t.Errorf("with %d descriptors: %s is lost", more, name)
			}
		}
		b.run("", "kill", "kept")
		b.run("", "rm", "-f", name)
		delete(want, name)
	}
	b.consistent()
	b.ok("start", "--wait", "agent", "kept")
}
