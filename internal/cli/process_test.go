package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// serve starts a fake daemon for one test, with a VM web that runs, and returns it with
// the environment by which banger finds it.
func serve(t *testing.T) (*fake, []string) {
	t.Helper()
	dir := t.TempDir()
	f, err := serveFake(filepath.Join(dir, "s"), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	env := append(os.Environ(), "BANGER_STATE_DIR="+dir, "BANGER_SOCKET="+f.socket, "HOME="+dir, "XDG_CONFIG_HOME="+dir, "TERM=vt100")
	if out, err := banger(env, "run", "-d", "--name", "web").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return f, env
}

// banger is the command as a process: this test binary under its name.
func banger(env []string, args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return &exec.Cmd{Path: self, Args: append([]string{"banger"}, args...), Env: env}
}

// ends waits for cmd and checks its exit code.
func ends(t *testing.T, cmd *exec.Cmd, code int) {
	t.Helper()
	err := cmd.Wait()
	if e, ok := errors.AsType[*exec.ExitError](err); !ok && err != nil {
		t.Fatal(err)
	} else if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d (%v), want %d", got, e, code)
	}
}

func TestSignals(t *testing.T) {
	f, env := serve(t)
	for _, s := range []struct {
		signal syscall.Signal
		name   string
	}{{unix.SIGINT, "INT"}, {unix.SIGTERM, "TERM"}, {unix.SIGHUP, "HUP"}, {unix.SIGQUIT, "QUIT"}, {unix.SIGUSR1, "USR1"}, {unix.SIGUSR2, "USR2"}} {
		t.Run(s.name, func(t *testing.T) {
			heeds(t, s.signal)
			f.forget()
			var out, errs bytes.Buffer
			cmd := banger(env, "exec", "web", "signal")
			cmd.Stdout, cmd.Stderr = &out, &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			f.await("signal waits")
			cmd.Process.Signal(s.signal)
			ends(t, cmd, 128+int(s.signal))
			if out.String() != "got "+s.name+"\n" || errs.Len() > 0 {
				t.Errorf("stdout %q, stderr %q", &out, &errs)
			}
		})
	}
	t.Run("three interrupts leave a command that ignores them", func(t *testing.T) {
		heeds(t, unix.SIGINT)
		cmd := banger(env, "exec", "web", "deaf")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		f.await("deaf waits")
		for range 3 {
			f.forget()
			cmd.Process.Signal(unix.SIGINT)
			f.await("deaf got INT|deaf was left")
		}
		ends(t, cmd, 130)
		f.await("deaf was left")
	})
}

// heeds skips a test where these tests were started with s ignored: so is banger then.
func heeds(t *testing.T, s os.Signal) {
	t.Helper()
	if signal.Ignored(s) {
		t.Skipf("SKIP: these tests were started with the signal %s ignored", s)
	}
}

func TestNohup(t *testing.T) {
	f, env := serve(t)
	var out bytes.Buffer
	cmd := exec.Command("sh", "-c", `trap "" HUP; exec "$0" exec web signal`, linkTo(t, banger(nil).Path))
	cmd.Env, cmd.Stdout = env, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.await("signal waits")
	cmd.Process.Signal(unix.SIGHUP)
	cmd.Process.Signal(unix.SIGTERM)
	ends(t, cmd, 143)
	if out.String() != "got TERM\n" {
		t.Errorf("stdout %q", &out)
	}
}

// linkTo gives this test binary the name by which it is the command.
func linkTo(t *testing.T, binary string) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), "banger")
	if err := os.Symlink(binary, link); err != nil {
		t.Fatal(err)
	}
	return link
}

func TestInterruptedBoot(t *testing.T) {
	heeds(t, unix.SIGINT)
	f, env := serve(t)
	for _, args := range [][]string{{"run", "--image", "never", "true"}, {"run", "--rm", "--image", "never", "true"}, {"run", "-d", "--image", "never"}} {
		f.forget()
		var errs bytes.Buffer
		cmd := banger(env, args...)
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		f.await("following")
		cmd.Process.Signal(unix.SIGINT)
		ends(t, cmd, 130)
		if got := f.text(); !strings.Contains(got, "rolled back") || errs.String() != "banger: interrupted\n" {
			t.Errorf("%v: stderr %q, journal:\n%s", args, &errs, got)
		}
	}
}

func TestKilledRunLeavesNoVM(t *testing.T) {
	f, env := serve(t)
	cmd := banger(env, "run", "--rm", "signal")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.await("signal waits")
	cmd.Process.Kill()
	cmd.Wait()
	f.await("lease removed a VM")
}

func TestFollowedLogs(t *testing.T) {
	heeds(t, unix.SIGINT)
	f, env := serve(t)
	var errs bytes.Buffer
	cmd := banger(env, "logs", "-f", "web")
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.await("following logs")
	if line, err := bufio.NewReader(out).ReadString('\n'); !strings.HasPrefix(line, "booting") {
		t.Errorf("got %q, %v", line, err)
	}
	cmd.Process.Signal(unix.SIGINT)
	ends(t, cmd, 130)
	if errs.Len() > 0 {
		t.Errorf("stderr %q", &errs)
	}
}

// TestMuch passes more through a command than any buffer on the way holds.
func TestMuch(t *testing.T) {
	_, env := serve(t)
	const size = 64 << 20
	cmd := banger(env, "exec", "web", "cat")
	cmd.Stdin = io.LimitReader(pattern{}, size)
	var sum counter
	cmd.Stdout = &sum
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if sum.n != size || sum.bad {
		t.Errorf("%d bytes came back, damaged: %v", sum.n, sum.bad)
	}
	if peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss; peak > 64<<10 {
		t.Errorf("%d KiB of memory for a stream", peak)
	}
}

// pattern yields the same byte for ever.
type pattern struct{}

func (pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

type counter struct {
	n   int
	bad bool
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += len(p)
	c.bad = c.bad || bytes.Count(p, []byte("x")) != len(p)
	return len(p), nil
}

// pty is a terminal, with what has been written to it.
type pty struct {
	master, tty *os.File

	mu      sync.Mutex
	changed *sync.Cond
	text    strings.Builder
	ended   bool
}

func openPTY(t *testing.T) *pty {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("SKIP: this host has no pseudo-terminals: ", err)
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &pty{master: master, tty: tty}
	p.changed = sync.NewCond(&p.mu)
	p.resize(t, 50, 132)
	read := make(chan struct{})
	go p.read(read)
	t.Cleanup(func() {
		tty.Close()
		<-read
		master.Close()
	})
	return p
}

func (p *pty) read(done chan struct{}) {
	defer close(done)
	buf := make([]byte, 4096)
	for {
		n, err := p.master.Read(buf)
		p.mu.Lock()
		p.text.Write(buf[:n])
		p.ended = err != nil
		p.changed.Broadcast()
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// await returns once the terminal shows text.
func (p *pty) await(t *testing.T, text string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for !strings.Contains(p.text.String(), text) {
		if p.ended {
			t.Fatalf("the terminal shows %q, not %q", p.text.String(), text)
		}
		p.changed.Wait()
	}
}

func (p *pty) resize(t *testing.T, rows, cols uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		t.Fatal(err)
	}
}

// start runs cmd on the terminal, as its session's leader, and returns a check that the
// terminal is as it was.
func (p *pty) start(t *testing.T, cmd *exec.Cmd) (restored func()) {
	t.Helper()
	before, err := term.GetState(int(p.tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.tty, p.tty, p.tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		after, err := term.GetState(int(p.tty.Fd()))
		if err != nil || *after != *before {
			t.Errorf("the terminal was left in another state (%v)", err)
		}
	}
}

func (p *pty) cooked(t *testing.T) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(p.tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ICANON != 0
}

func TestTerminal(t *testing.T) {
	f, env := serve(t)
	t.Run("a shell", func(t *testing.T) {
		p := openPTY(t)
		cmd := banger(env, "exec", "web")
		restored := p.start(t, cmd)
		p.await(t, "$ ")
		if p.cooked(t) {
			t.Error("the terminal is not in raw mode")
		}
		p.master.WriteString("\x03\x1dkeys") // an interrupt is the guest's business now
		p.await(t, "\x03\x1dkeys")
		if got := f.text(); !strings.Contains(got, `tty=true user="" dir="" env=["TERM=vt100"]`) {
			t.Errorf("journal:\n%s", got)
		}
		p.master.WriteString("\x04")
		ends(t, cmd, 0)
		restored()
	})
	t.Run("resize", func(t *testing.T) {
		f.forget()
		p := openPTY(t)
		cmd := banger(env, "exec", "-t", "web", "size")
		restored := p.start(t, cmd)
		p.await(t, "size 50 132")
		f.await("size told")
		p.resize(t, 20, 40)
		p.await(t, "size 20 40")
		ends(t, cmd, 0)
		restored()
	})
	for _, args := range [][]string{{"-t", "web", "exit", "5"}, {"-t", "web", "vanish"}, {"-t", "nope", "x"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			p := openPTY(t)
			cmd := banger(env, append([]string{"exec"}, args...)...)
			restored := p.start(t, cmd)
			want := 125
			if args[2] == "exit" {
				want = 5
			}
			ends(t, cmd, want)
			restored()
		})
	}
	t.Run("a command gets no terminal unasked", func(t *testing.T) {
		f.forget()
		p := openPTY(t)
		cmd := banger(env, "exec", "web", "echo", "x")
		restored := p.start(t, cmd)
		ends(t, cmd, 0)
		restored()
		if got := f.text(); !strings.Contains(got, "tty=false") {
			t.Errorf("journal:\n%s", got)
		}
	})
	t.Run("run says that the VM stays", func(t *testing.T) {
		p := openPTY(t)
		cmd := banger(env, "run", "--name", "stays", "exit", "3")
		p.start(t, cmd)
		p.await(t, "banger: stays runs on; stop it with `banger stop stays`")
		ends(t, cmd, 3)
	})
	t.Run("logs are calmed", func(t *testing.T) {
		p := openPTY(t)
		cmd := banger(env, "logs", "web")
		p.start(t, cmd)
		p.await(t, "booting^[]0;title^G")
		ends(t, cmd, 0)
	})
	t.Run("ls tells of hidden VMs", func(t *testing.T) {
		if err := banger(env, "create", "--name", "idle").Run(); err != nil {
			t.Fatal(err)
		}
		p := openPTY(t)
		cmd := banger(env, "ls")
		p.start(t, cmd)
		p.await(t, "1 stopped not shown")
		ends(t, cmd, 0)
	})
}

func TestConsole(t *testing.T) {
	_, env := serve(t)
	p := openPTY(t)
	cmd := banger(env, "console", "web")
	restored := p.start(t, cmd)
	p.await(t, "Ctrl-] leaves the console")
	p.await(t, "login: ")
	p.master.WriteString("root\x03")
	p.await(t, "root\x03")
	p.master.WriteString("\x1d")
	ends(t, cmd, 0)
	restored()

	out, err := func() (string, error) {
		cmd := banger(env, "console", "web")
		cmd.Stdin = strings.NewReader("keys")
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			return "", err
		}
		if err := cmd.Start(); err != nil {
			return "", err
		}
		buf := make([]byte, len("login: keys"))
		_, err = io.ReadFull(stdout, buf)
		cmd.Process.Signal(unix.SIGTERM)
		ends(t, cmd, 143)
		return string(buf), err
	}()
	if err != nil || out != "login: keys" {
		t.Errorf("got %q, %v", out, err)
	}
}
