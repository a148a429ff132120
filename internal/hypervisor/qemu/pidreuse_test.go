package qemu

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
)

// inNamespace marks the run of this test that is the first process of a PID namespace.
const inNamespace = "BANGER_TEST_PID_NAMESPACE"

// A stranger that has a dead machine's pid is never signalled.
func TestAStrangerWithTheSamePID(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		if os.Geteuid() != 0 {
			t.Skip("SKIP: choosing process ids needs root")
		}
		c := exec.Command("/proc/self/exe", "-test.run=^TestAStrangerWithTheSamePID$", "-test.v")
		c.Env = append(os.Environ(), inNamespace+"=1")
		// Process ids are chosen in a namespace of our own, where nobody else takes one.
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("in the namespace: %v\n%s", err, out)
		}
		if !bytes.Contains(out, []byte("100 of 100")) {
			t.Errorf("it did not run to its end:\n%s", out)
		}
		return
	}
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	left, h, dir := 0, New("qemu"), t.TempDir()
	for range 100 {
		rec := hypervisor.Record{Dir: dir, VMID: "0123456789ab", Process: deadMachine(t)}
		stranger := withPID(t, rec.Process.PID)
		if handle, err := rec.Process.Open(); errs.KindOf(err) != errs.NotFound {
			t.Fatalf("the stranger was opened: %v, %v", handle, err)
		}
		if m, err := h.Adopt(t.Context(), rec); errs.KindOf(err) != errs.NotFound {
			t.Fatalf("the stranger was adopted: %v, %v", m, err)
		}
		if err := h.Remove(t.Context(), rec.VMID, dir, &rec); err != nil {
			t.Fatal(err)
		}
		// It counts what it can catch and tells on request: nothing came before our signal.
		if err := stranger.cmd.Process.Signal(unix.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		if said := stranger.line(t); said != "caught USR2" {
			t.Fatalf("the stranger says %q", said)
		}
		left++
		stranger.end()
	}
	t.Logf("%d of 100 strangers were left alone", left)
}

// deadMachine returns the identity of a process that has ended and is reaped. It outlived
// the clock tick of its start, as any machine does: start times are counted in those.
func deadMachine(t *testing.T) host.Process {
	t.Helper()
	c := exec.Command("sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := host.Identify(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for {
		probe := exec.Command("sleep", "1000")
		if err := probe.Start(); err != nil {
			t.Fatal(err)
		}
		now, err := host.Identify(probe.Process.Pid)
		probe.Process.Kill()
		probe.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if now.StartTicks > p.StartTicks {
			break
		}
	}
	c.Process.Kill()
	c.Wait()
	return p
}

// stranger is a program that tells what signals it catches.
type stranger struct {
	cmd *exec.Cmd
	out *os.File
}

// withPID starts a stranger with this process id.
func withPID(t *testing.T, pid int) *stranger {
	t.Helper()
	for range 100 { // the Go runtime's own threads take ids too
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.Command("sh", "-c", `for s in HUP INT QUIT TERM USR1 USR2 CONT; do trap "echo caught $s" $s; done; echo ready; while :; do sleep 1000 & wait $!; kill $!; done`)
		c.Stdout = w
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		s := &stranger{c, r}
		if c.Process.Pid == pid {
			if said := s.line(t); said != "ready" {
				t.Fatalf("the stranger says %q", said)
			}
			return s
		}
		s.end()
	}
	t.Fatalf("nobody gets process id %d", pid)
	return nil
}

func (s *stranger) line(t *testing.T) string {
	t.Helper()
	var line []byte
	for b := make([]byte, 1); ; line = append(line, b[0]) {
		if _, err := s.out.Read(b); err != nil {
			return fmt.Sprintf("%s and then nothing: %v", line, err)
		}
		if b[0] == '\n' {
			return string(line)
		}
	}
}

// end kills the stranger with what it has started.
func (s *stranger) end() {
	unix.Kill(-s.cmd.Process.Pid, unix.SIGKILL)
	s.cmd.Wait()
	s.out.Close()
}
