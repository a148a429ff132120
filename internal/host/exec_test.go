package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

func TestRunPassesEverything(t *testing.T) {
	var out, stderr bytes.Buffer
	dir := t.TempDir()
	err := Run(t.Context(), Command{
		Path: "sh", Args: []string{"-c", `cat; echo "$X $1"; pwd; echo warning >&2`, "sh", "a b"},
		Env: []string{"X=1", "PATH=" + os.Getenv("PATH")}, Dir: dir,
		Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &stderr,
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := "in\n1 a b\n" + dir + "\n"; out.String() != want {
		t.Errorf("stdout %q, want %q", out.String(), want)
	}
	if stderr.String() != "warning\n" {
		t.Errorf("stderr %q", stderr.String())
	}
}

func TestExitErrorKeepsTheLastWords(t *testing.T) {
	script := `i=0; while [ $i -lt 2000 ]; do echo "line $i of chatter" >&2; i=$((i+1)); done; echo "the real reason" >&2; exit 3`
	err := Run(t.Context(), Command{Path: "sh", Args: []string{"-c", script}})
	e, ok := errors.AsType[*ExitError](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	if e.Code != 3 || e.Program != "sh" || len(e.Tail) != tailBytes || !strings.HasSuffix(e.Tail, "the real reason\n") {
		t.Errorf("code %d, program %q, tail of %d bytes ending %q", e.Code, e.Program, len(e.Tail), e.Tail[max(0, len(e.Tail)-30):])
	}
	if want := "sh: exit status 3: the real reason"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	err = Run(t.Context(), Command{Path: "sh", Args: []string{"-c", "kill -SEGV $$"}})
	if e, ok := errors.AsType[*ExitError](err); !ok || e.Code != 128+11 || e.Error() != "sh: segmentation fault" {
		t.Errorf("by a signal: %v", err)
	}
}

func TestMissingProgramNamesItsPackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Output(t.Context(), Command{Path: "qemu-nbd"})
	if _, there := os.Stat("/usr/sbin/qemu-nbd"); there != nil {
		if errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "qemu-nbd") || !strings.Contains(errs.HintOf(err), "qemu-utils") {
			t.Errorf("%v, hint %q", err, errs.HintOf(err))
		}
	}
	err = Run(t.Context(), Command{Path: "/nonexistent/thing"})
	if errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) != "" {
		t.Errorf("%v, hint %q", err, errs.HintOf(err))
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), Command{Path: plain}); errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "can't be run") {
		t.Errorf("a file that is no program: %v", err)
	}
}

// firstLine cancels a context when the program has written its first line, and keeps it.
type firstLine struct {
	line   string
	cancel context.CancelFunc
}

func (f *firstLine) Write(b []byte) (int, error) {
	f.line += string(b)
	if strings.Contains(f.line, "\n") {
		f.cancel()
	}
	return len(b), nil
}

func TestCancelEndsTheWholeGroup(t *testing.T) {
	for name, script := range map[string]string{
		"obedient leader":                   `sleep 1000 & echo $!; wait`,
		"leader ends, descendant is deaf":   `(trap "" TERM; exec sleep 1000) & echo $!; wait`,
		"leader ends at once, pipe is held": `(trap "" TERM; exec sleep 1000) & echo $!; trap "exit 0" TERM; wait`,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out := &firstLine{cancel: cancel}
			err := Run(ctx, Command{Path: "sh", Args: []string{"-c", script}, Stdout: out})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(out.line))
			if err != nil {
				t.Fatal(err)
			}
			if p, err := Identify(pid); err == nil {
				// It has been sent SIGKILL: the end is certain, but not yet there.
				if h, err := p.Open(); err == nil {
					defer h.Close()
					if err := h.Wait(t.Context()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

func TestRunUnderACancelledContextStartsNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mark := filepath.Join(t.TempDir(), "ran")
	if err := Run(ctx, Command{Path: "touch", Args: []string{mark}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the program ran")
	}
}

func detachShell(t *testing.T, script string, files ...*os.File) (*Child, string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c, err := Detach(Detached{Path: "sh", Args: []string{"-c", script}, Log: log, Files: files})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Handle().Signal(unix.SIGKILL)
		<-c.Done()
		c.Close()
	})
	return c, log.Name()
}

func TestDetachGivesASessionALogAndFiles(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, log := detachShell(t, `read x || echo "no stdin"; echo word >&3; echo oops >&2; exit 4`, w)
	w.Close()
	word := make([]byte, 5)
	if _, err := r.Read(word); err != nil || string(word) != "word\n" {
		t.Errorf("descriptor 3: %q, %v", word, err)
	}
	<-c.Done()
	if got := c.State().ExitCode(); got != 4 {
		t.Errorf("exit code %d", got)
	}
	if b, _ := os.ReadFile(log); string(b) != "no stdin\noops\n" {
		t.Errorf("log %q", b)
	}
	if _, err := c.Process.Open(); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a reaped child was opened: %v", err)
	}
}

func TestDetachOnOneCPU(t *testing.T) {
	ours := func() (set unix.CPUSet) {
		t.Helper()
		if err := unix.SchedGetaffinity(0, &set); err != nil {
			t.Fatal(err)
		}
		return set
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := ours()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c, err := Detach(Detached{Path: "nproc", Log: log, OneCPU: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-c.Done()
	if b, _ := os.ReadFile(log.Name()); string(b) != "1\n" {
		t.Errorf("it may use %q CPUs", b)
	}
	if after := ours(); after != before {
		t.Errorf("this process may use %d CPUs, and could use %d", after.Count(), before.Count())
	}
}

func TestDetachedChildLeadsItsSession(t *testing.T) {
	c, _ := detachShell(t, `exec sleep 1000`)
	if c.State() != nil {
		t.Error("a running child has an exit state")
	}
	sid, err := unix.Getsid(c.Process.PID)
	if err != nil || sid != c.Process.PID {
		t.Errorf("session %d of process %d, %v", sid, c.Process.PID, err)
	}
	h, err := c.Process.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-h.Done()
	<-c.Done()
	if got := fmt.Sprint(c.State()); got != "signal: terminated" {
		t.Errorf("state %q", got)
	}
}

func TestOwnMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root has mounts of its own")
	}
	dir := t.TempDir()
	out, err := Output(t.Context(), Command{Path: "sh", Args: []string{"-c", `mount -t tmpfs none "$0" && stat -f -c %T "$0"`, dir}, OwnMounts: true})
	if err != nil || string(out) != "tmpfs\n" {
		t.Errorf("it sees %q, %v", out, err)
	}
	if found, err := MountsBelow(dir); err != nil || len(found) != 0 {
		t.Errorf("mounted here is %q, %v", found, err)
	}
	// Who may not mount at all, as root in many a container, has programs run all the same.
	ended := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends, and with it what it may not
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var has [2]unix.CapUserData
		err := unix.Capget(&header, &has[0])
		has[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
		if err == nil {
			err = unix.Capset(&header, &has[0])
		}
		if err == nil {
			err = Run(t.Context(), Command{Path: "true", OwnMounts: true})
		}
		ended <- err
	}()
	if err := <-ended; err != nil {
		t.Errorf("without the right to mount: %v", err)
	}
}
