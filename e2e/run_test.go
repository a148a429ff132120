package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"banger/api"
)

func TestRunHandsBackTheExitCode(t *testing.T) {
	b := newBanger(t)
	r := b.run("from outside\n", "run", "--rm", "--image", "tiny", "-e", "GREETING=hello", "--", "sh", "-c", `read line; echo "$GREETING, $line"; echo oops >&2; exit 7`)
	if r.code != 7 || r.out != "hello, from outside\n" || !strings.Contains(r.err, "oops\n") {
		t.Errorf("got %+v", r)
	}
	if left := b.ok("ls", "-aq"); left != "" {
		t.Errorf("--rm left %q", left)
	}
}

func TestCommandsInARunningVM(t *testing.T) {
	b := newBanger(t)
	name := b.vm("-e", "A=1")
	for _, tc := range []struct {
		stdin string
		args  []string
		out   string
		code  int
	}{
		{"hi\n", []string{"--", "cat"}, "hi\n", 0},
		{"", []string{"--", "sh", "-c", "echo $A$B; exit 255"}, "1\n", 255},
		{"", []string{"-e", "B=2", "--", "sh", "-c", "echo $A$B"}, "12\n", 0},
		{"", []string{"--", "nonesuch"}, "", 127},
		{"", []string{"--", "/etc/passwd"}, "", 126},
		{"", []string{"--", "sh", "-c", "kill -TERM $$"}, "", 143},
		{"", []string{"-w", "/tmp", "--", "pwd"}, "/tmp\n", 0},
		{"", []string{"--", "hostname"}, name + "\n", 0},
		{"", []string{"--", "sh", "-c", "sleep 1000 & echo started"}, "started\n", 0}, // returns though the sleeper holds stdout
	} {
		args := []string{"exec"}
		for i, a := range tc.args { // options come before the name
			if a == "--" {
				args = append(append(append(args, tc.args[:i]...), name), tc.args[i:]...)
			}
		}
		r := b.run(tc.stdin, args...)
		if r.code != tc.code || r.out != tc.out {
			t.Errorf("%q: got %+v, want %q and %d", tc.args, r, tc.out, tc.code)
		}
	}
	b.refused(125, []string{"there is no VM", "banger ls -a"}, "exec", "nonesuch", "--", "true")

	nothing := b.command("exec", name, "--", "sh", "-c", "echo lost; (readlink /proc/$$/fd/0; readlink /proc/$$/fd/1) >&2; true")
	nothing.Stdin, nothing.Stdout = nil, nil // os/exec opens /dev/null
	var said bytes.Buffer
	nothing.Stderr = &said
	if err := nothing.Run(); err != nil || said.String() != "/dev/null\n/dev/null\n" {
		t.Errorf("without input and output: %v, %q", err, &said)
	}
}

func TestMuchThroughStdinAndStdout(t *testing.T) {
	b := newBanger(t)
	name := b.vm()
	const size = 256 << 20
	sent, came := sha256.New(), sha256.New()
	c := b.command("exec", name, "--", "cat")
	c.Stdin = io.TeeReader(io.LimitReader(rand.Reader, size), sent)
	c.Stdout = came
	if r := b.finish(c); r.code != 0 || !bytes.Equal(sent.Sum(nil), came.Sum(nil)) {
		t.Errorf("what came back from cat is not what was sent (%+v)", r)
	}
}

func TestSignalsReachTheGuest(t *testing.T) {
	b := newBanger(t)
	name := b.vm()
	c := b.command("exec", name, "--", "sh", "-c", `trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.1; done`)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(out, line); err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(out)
	if err != nil {
		t.Error(err)
	}
	if err := c.Wait(); c.ProcessState.ExitCode() != 3 || string(rest) != "caught\n" {
		t.Errorf("got %q, %v", rest, err)
	}
}

func TestFilesTravelBothWays(t *testing.T) {
	b := newBanger(t)
	name := b.vm("--disk", "1G", "--memory", "768M")
	src := filepath.Join(t.TempDir(), "tree")
	big := filepath.Join(src, "deep", "big")
	if err := os.MkdirAll(filepath.Dir(big), 0o751); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(big)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, sum), rand.Reader, 64<<20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for link, to := range map[string]string{"abs": "/etc/passwd", "rel": "deep/big", "dangling": "nowhere"} {
		if err := os.Symlink(to, filepath.Join(src, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(src, "run me"), []byte("#!/bin/sh\necho ran\n"), 0o750); err != nil {
		t.Fatal(err)
	}
	b.ok("cp", src, name+":/root/in")
	if out := b.ok("exec", name, "--", "/root/in/run me"); out != "ran\n" {
		t.Errorf("the copied script said %q", out)
	}
	if out := b.ok("exec", name, "--", "sha256sum", "/root/in/deep/big"); !strings.HasPrefix(out, fmt.Sprintf("%x", sum.Sum(nil))) {
		t.Errorf("the guest has %s", out)
	}
	back := filepath.Join(t.TempDir(), "back")
	b.ok("cp", name+":/root/in", back)
	if got, want := listing(t, back), listing(t, src); got != want {
		t.Errorf("came back as\n%s\nwas\n%s", got, want)
	}
	b.ok("cp", filepath.Join(src, "run me"), name+":/root") // into a directory, under its own name
	b.ok("exec", name, "--", "test", "-x", "/root/run me")
	b.refused(1, []string{"nonesuch"}, "cp", name+":/nonesuch", back)
	b.refused(1, []string{"nonesuch"}, "cp", filepath.Join(src, "nonesuch"), name+":/root")
	b.refused(1, []string{"/no/such"}, "cp", big, name+":/no/such/place")
}

// listing describes a tree: mode, name, and what each entry holds.
func listing(t *testing.T, root string) string {
	t.Helper()
	var lines strings.Builder
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		holds := ""
		switch {
		case info.Mode()&os.ModeSymlink != 0:
			holds, err = os.Readlink(path)
		case info.Mode().IsRegular():
			var b []byte
			b, err = os.ReadFile(path)
			holds = fmt.Sprintf("%x %d", sha256.Sum256(b), info.ModTime().Unix())
		}
		fmt.Fprintf(&lines, "%v %s %s\n", info.Mode(), rel, holds)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines.String()
}

func TestThreeAtOnce(t *testing.T) {
	b := newBanger(t)
	b.ok("ls") // the daemon runs
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			r := b.run("", "run", "--image", "tiny", "--name", fmt.Sprint("vm", i), "--", "hostname")
			if r.code != 0 || r.out != fmt.Sprintf("vm%d\n", i) {
				t.Errorf("VM %d: %+v", i, r)
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for i := range 3 {
		id := b.ok("exec", fmt.Sprint("vm", i), "--", "cat", "/etc/machine-id")
		if len(id) != 33 || seen[id] {
			t.Errorf("machine-id %q", id)
		}
		seen[id] = true
		if v := b.inspect(fmt.Sprint("vm", i)); v.State != api.StateRunning || v.Disk.AllocatedBytes > 8<<20 || v.PID == 0 {
			t.Errorf("inspect: %+v", v)
		}
	}
}

func TestDiskGrowsAndKeeps(t *testing.T) {
	b := newBanger(t)
	name := b.vm("--disk", "3G")
	if out := b.ok("exec", name, "--", "sh", "-c", "df -m / | tail -1 | awk '{print ($2 > 2800)}'"); out != "1\n" {
		t.Errorf("df in a VM of 3 GiB: %s", b.ok("exec", name, "--", "df", "-m", "/"))
	}
	b.ok("exec", name, "--", "sh", "-c", "echo precious > /root/file")
	before := b.inspect(name)
	b.ok("stop", name)
	stopped := b.inspect(name)
	if stopped.State != api.StateStopped || stopped.PID != 0 || stopped.Error != "" {
		t.Errorf("stopped as %+v", stopped)
	}
	b.refused(125, []string{"is stopped", "banger start " + name}, "exec", name, "--", "true")
	b.ok("start", name)
	if out := b.ok("exec", name, "--", "cat", "/root/file", "/etc/machine-id"); !strings.HasPrefix(out, "precious\n") {
		t.Errorf("after stop and start: %q", out)
	}
	if after := b.inspect(name); after.Network.MAC != before.Network.MAC || after.ID != before.ID {
		t.Errorf("came back as %+v, was %+v", after, before)
	}
}

func TestVMsOutliveTheDaemon(t *testing.T) {
	b := newBanger(t)
	name := b.vm()
	pid := b.inspect(name).PID
	for range 3 {
		b.killDaemon()
		if out := b.ok("exec", name, "--", "echo", "still here"); out != "still here\n" {
			t.Errorf("got %q", out)
		}
	}
	b.ok("daemon", "stop")
	if out := b.ok("exec", name, "--", "hostname"); out != name+"\n" {
		t.Errorf("got %q", out)
	}
	if v := b.inspect(name); v.PID != pid || v.State != api.StateRunning {
		t.Errorf("got %+v, want process %d", v, pid)
	}
	b.ok("stop", name)
}

// A daemon that dies in the middle of a transfer leaves a guest whose input was cut short,
// never one that was fed something else, and a channel that works.
func TestDaemonDiesInATransfer(t *testing.T) {
	b := newBanger(t)
	name := b.vm("--disk", "1G")
	for range 3 {
		c := b.command("exec", name, "--", "sh", "-c", "echo ready; cat > /root/got")
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
			t.Fatal(err)
		}
		chunk := bytes.Repeat([]byte("0123456789abcde\n"), 64<<10)
		for range 8 {
			if _, err := in.Write(chunk); err != nil {
				t.Fatal(err)
			}
		}
		b.killDaemon()
		in.Close()
		c.Wait() // fails, as it should: its connection broke
		if c.ProcessState.ExitCode() != 125 {
			t.Errorf("exit code %d", c.ProcessState.ExitCode())
		}
		// Nothing but whole lines, except that the last may be torn.
		if out := b.ok("exec", name, "--", "sh", "-c", "grep -vn '^0123456789abcde$' /root/got | head -2; echo looked"); strings.Count(out, "\n") > 2 {
			t.Errorf("the guest was fed %q", out)
		}
	}
}

func TestAClientThatIsKilledTakesItsVMAlong(t *testing.T) {
	b := newBanger(t)
	c := b.command("run", "--rm", "--name", "leased", "--image", "tiny", "--", "sh", "-c", "echo up; sleep 1000")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.Wait() // it says only that it was killed
	eventually(t, "the removal of its VM", func() bool { return b.ok("ls", "-aq") == "" })
}

func TestConsoleAndLogs(t *testing.T) {
	b := newBanger(t)
	name := b.vm()
	b.ok("exec", name, "--", "sh", "-c", "echo to the console > /dev/console")
	eventually(t, "the line in the log", func() bool { return strings.Contains(b.ok("logs", name), "to the console") })
	follow := b.command("logs", "-f", name)
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	b.ok("exec", name, "--", "sh", "-c", "echo the last word > /dev/console")
	b.ok("stop", name)
	text, err := io.ReadAll(out) // ends with the machine
	if err != nil || !bytes.Contains(text, []byte("the last word")) {
		t.Errorf("logs -f gave %q, %v", text, err)
	}
	follow.Wait()
	if !strings.Contains(b.ok("logs", name), "the last word") {
		t.Error("the log of a stopped VM has lost its end")
	}
	detached := strings.TrimSpace(b.ok("run", "-d", "--image", "tiny", "--", "sh", "-c", "echo from a detached command"))
	eventually(t, "the output of a detached command", func() bool { return strings.Contains(b.ok("logs", detached), "from a detached command") })
}
