package host

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

func TestParseStat(t *testing.T) {
	rest := " S 1 2 3 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 1 0 4242 1000 10 18446744073709551615 0"
	for _, name := range []string{"sh", "a b", "a) R 1 2", "((", ")", "", "x\ny", "é"} {
		st, err := parseStat([]byte("17 (" + name + ")" + rest))
		if err != nil || st != (stat{State: 'S', StartTicks: 4242}) {
			t.Errorf("name %q: %+v, %v", name, st, err)
		}
	}
	for _, bad := range []string{"", "17", "17 (sh", "17 (sh)", "17 (sh) S 1 2", "17 (sh)" + strings.Replace(rest, "4242", "-1", 1), "17 (sh)" + strings.Replace(rest, "S", "SS", 1)} {
		if st, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was read as %+v", bad, st)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("1 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99 20"))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseStat(b)
		if err != nil && st != (stat{}) {
			t.Errorf("a refused line gave %+v", st)
		}
		if err == nil && st.State == 0 {
			t.Error("a line without a state was accepted")
		}
	})
}

// sleeper starts a process that stays until it is killed.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func TestHandleSignalsAndSeesTheEnd(t *testing.T) {
	cmd := sleeper(t)
	p, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	h, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	select {
	case <-h.Done():
		t.Fatal("a running process is reported as ended")
	default:
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Wait(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait under a cancelled context: %v", err)
	}
	if err := h.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Nobody has reaped it yet.
	if _, err := p.Open(); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a zombie was opened: %v", err)
	}
	if _, err := Identify(p.PID); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a zombie was identified: %v", err)
	}
	cmd.Wait()
	if _, err := p.Open(); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a process that is gone was opened: %v", err)
	}
	if err := h.Signal(unix.SIGKILL); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a signal to a process that is gone: %v", err)
	}
}

func TestOpenRefusesAnotherProcessWithTheSamePID(t *testing.T) {
	p, err := Identify(sleeper(t).Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	reused, otherBoot := p, p
	reused.StartTicks--
	otherBoot.BootID = "00000000-0000-0000-0000-000000000000"
	for name, p := range map[string]Process{"reused": reused, "earlier boot": otherBoot, "zero": {}, "negative": {PID: -1}} {
		if h, err := p.Open(); errs.KindOf(err) != errs.NotFound {
			t.Errorf("%s: %v, %v", name, h, err)
		}
	}
}

func TestCloseIsNotTheEnd(t *testing.T) {
	cmd := sleeper(t)
	p, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	h, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGKILL)
	cmd.Wait()
	select {
	case <-h.Done():
		t.Error("a closed handle reported an end that it can't have seen")
	default:
	}
}
