package host

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// Only those with the whole of a mark are ended, and those that they have started too.
func TestKillMarked(t *testing.T) {
	start := func(env string, argv ...string) *exec.Cmd {
		t.Helper()
		c := exec.Command(argv[0], argv[1:]...)
		c.Env = append(os.Environ(), env)
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		ready, err := c.StdoutPipe()
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ready.Read(make([]byte, 1)); err != nil { // it has been executed
			t.Fatal(err)
		}
		t.Cleanup(func() {
			c.Process.Kill()
			c.Wait()
		})
		return c
	}
	const mark = "BANGER_TEST_MARK=/x/1"
	sh := []string{"sh", "-c", "sleep 1000 & echo; wait"}
	ours, other := start(mark, sh...), start(mark+"0", sh...)
	if found, err := marked(mark); err != nil || len(found) != 2 {
		t.Fatalf("found %v, %v", found, err)
	}
	if err := KillMarked(t.Context(), mark); err != nil {
		t.Fatal(err)
	}
	if found, err := marked(mark); err != nil || len(found) != 0 {
		t.Errorf("left are %v, %v", found, err)
	}
	if err := ours.Wait(); ours.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", err)
	}
	if found, err := marked(mark + "0"); err != nil || len(found) != 2 {
		t.Errorf("of the other are left %v, %v", found, err)
	}
	if err := KillMarked(t.Context(), mark+"0"); err != nil {
		t.Error(err)
	}
	other.Wait()
}
