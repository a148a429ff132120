package guestd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/guest/proto"
	"banger/internal/guest/session"
)

// run executes a shell script in the guest and returns what it wrote.
func (w *world) run(t *testing.T, script string, stdin io.Reader) (stdout, stderr string, exit proto.Exit) {
	t.Helper()
	var out, errOut bytes.Buffer
	exit, err := session.Exec(t.Context(), w.open, proto.Exec{Argv: []string{"sh", "-c", script}},
		session.IO{Stdin: stdin, Stdout: &out, Stderr: &errOut})
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out.String(), errOut.String(), exit
}

func TestExecStreamsAndExitCodes(t *testing.T) {
	w := newWorld(t)
	tests := []struct {
		script, stdin  string
		stdout, stderr string
		exit           proto.Exit
	}{
		{script: "true"},
		{script: "exit 7", exit: proto.Exit{Code: 7}},
		{script: "echo out; echo err >&2", stdout: "out\n", stderr: "err\n"},
		{script: "cat; exit 3", stdin: "hello", stdout: "hello", exit: proto.Exit{Code: 3}},
		{script: "kill -9 $$", exit: proto.Exit{Code: 137, Signal: "KILL"}},
		{script: "kill -TERM $$", exit: proto.Exit{Code: 143, Signal: "TERM"}},
		{script: "head -c 3", stdin: strings.Repeat("x", 1<<20), stdout: "xxx"},
		{script: "echo $HOME $USER", stdout: w.root + "/home root\n"},
		{script: "pwd", stdout: w.root + "/home\n"},
		// Nothing that was written before the end is lost, nobody waits for the sleeper.
		{script: "sleep 1000 & echo $! >&2; head -c 200000 /dev/zero | tr '\\0' y", stdout: strings.Repeat("y", 200000)},
	}
	for _, tt := range tests {
		t.Run(tt.script, func(t *testing.T) {
			stdout, stderr, exit := w.run(t, tt.script, strings.NewReader(tt.stdin))
			if strings.HasPrefix(tt.script, "sleep") {
				killAll(t, stderr)
				stderr = ""
			}
			if stdout != tt.stdout || stderr != tt.stderr || exit != tt.exit {
				t.Errorf("got %q, %q, %+v; want %q, %q, %+v", stdout, stderr, exit, tt.stdout, tt.stderr, tt.exit)
			}
		})
	}
}

// killAll ends the processes that a test's command printed the pids of.
func killAll(t *testing.T, pids string) {
	t.Helper()
	for _, f := range strings.Fields(pids) {
		var pid int
		if _, err := fmt.Sscan(f, &pid); err != nil || pid < 2 {
			t.Fatalf("no pid: %q", f)
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			t.Fatal(err)
		}
		p.Kill()
	}
}

func TestExecWithoutStdinSeesItsEnd(t *testing.T) {
	w := newWorld(t)
	if out, _, _ := w.run(t, "cat; echo end", nil); out != "end\n" {
		t.Errorf("got %q", out)
	}
}

// A command that ends must not wait for a person at a keyboard.
func TestExecDoesNotWaitForStdin(t *testing.T) {
	w := newWorld(t)
	blocked, writer := io.Pipe()
	defer writer.Close()
	if out, _, exit := w.run(t, "echo done", blocked); out != "done\n" || exit.Code != 0 {
		t.Errorf("got %q, %+v", out, exit)
	}
}

func TestExecPassesGigabytesUnchanged(t *testing.T) {
	w := newWorld(t)
	const size = 64 << 20
	out, _, exit := w.run(t, "wc -c", io.LimitReader(zeros{}, size))
	if strings.TrimSpace(out) != fmt.Sprint(size) || exit.Code != 0 {
		t.Errorf("got %q, %+v", out, exit)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestExecCommandsThatCannotRun(t *testing.T) {
	w := newWorld(t)
	plain := filepath.Join(w.root, "plain")
	if err := os.WriteFile(plain, []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		exec proto.Exec
		code int
		says string
	}{
		{"not found", proto.Exec{Argv: []string{"no-such-command"}}, 127, "no-such-command: command not found"},
		{"path not found", proto.Exec{Argv: []string{"/no/such"}}, 127, "/no/such: no such file"},
		{"not executable", proto.Exec{Argv: []string{plain}}, 126, "permission denied"},
		{"a directory", proto.Exec{Argv: []string{w.root}}, 126, "permission denied"},
		{"no directory", proto.Exec{Argv: []string{"true"}, Dir: "/no/such"}, 126, "/no/such: no such directory"},
		{"empty name", proto.Exec{Argv: []string{""}}, 127, "command not found"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			exit, err := session.Exec(t.Context(), w.open, tt.exec, session.IO{Stdout: io.Discard})
			if err != nil || exit.Code != tt.code || !strings.Contains(exit.Message, tt.says) {
				t.Errorf("got %+v, %v; want %d, %q", exit, err, tt.code, tt.says)
			}
		})
	}
}

func TestExecUnknownUserIsNeverStarted(t *testing.T) {
	w := newWorld(t)
	_, err := session.Exec(t.Context(), w.open, proto.Exec{Argv: []string{"true"}, User: "mallory"}, session.IO{})
	var pe *proto.Error
	if !errors.As(err, &pe) || pe.Code != "not_found" {
		t.Errorf("got %v", err)
	}
}

func TestExecAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: changing the user needs root")
	}
	w := newWorld(t)
	var out bytes.Buffer
	_, err := session.Exec(t.Context(), w.open, proto.Exec{Argv: []string{"sh", "-c", "id -u; id -g; pwd"}, User: "nobody"},
		session.IO{Stdout: &out})
	if err != nil || out.String() != "65534\n65534\n/\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestExecEnvironment(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(filepath.Join(w.root, "etc/environment"), []byte("# x\nLANG=\"C.UTF-8\"\nexport A=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	_, err := session.Exec(t.Context(), w.open,
		proto.Exec{Argv: []string{"sh", "-c", "echo $LANG $A $B $USER"}, Env: []string{"A=2", "B=3", "USER=me"}},
		session.IO{Stdout: &out})
	if err != nil || out.String() != "C.UTF-8 2 3 me\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestExecSignalReachesTheGroup(t *testing.T) {
	w := newWorld(t)
	signals := make(chan string, 1)
	out := &lineWaiter{line: "ready\n", then: func() { signals <- "USR1" }}
	exit, err := session.Exec(t.Context(), w.open,
		proto.Exec{Argv: []string{"sh", "-c", `trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.1; done`}},
		session.IO{Stdout: out, Signals: signals})
	if err != nil || exit.Code != 9 || out.String() != "ready\ncaught\n" {
		t.Errorf("got %+v, %v, %q", exit, err, out.String())
	}
}

// lineWaiter calls then once line has been written to it.
type lineWaiter struct {
	buf  bytes.Buffer
	line string
	then func()
}

func (l *lineWaiter) Write(p []byte) (int, error) {
	n, err := l.buf.Write(p)
	if l.then != nil && strings.Contains(l.String(), l.line) {
		then := l.then
		l.then = nil
		then()
	}
	return n, err
}

func (l *lineWaiter) String() string { return l.buf.String() }

func TestExecTerminal(t *testing.T) {
	w := newWorld(t)
	resize := make(chan proto.Size, 1)
	out := &lineWaiter{line: "10 20", then: func() { resize <- proto.Size{Rows: 30, Cols: 40} }}
	script := `trap 'stty size; exit 4' WINCH; tty >/dev/null && echo $TERM; stty size; while :; do sleep 0.1; done`
	exit, err := session.Exec(t.Context(), w.open,
		proto.Exec{Argv: []string{"sh", "-c", script}, TTY: true, Size: &proto.Size{Rows: 10, Cols: 20}},
		session.IO{Stdout: out, Resize: resize})
	if err != nil || exit.Code != 4 || out.String() != "xterm-256color\r\n10 20\r\n30 40\r\n" {
		t.Errorf("got %+v, %v, %q", exit, err, out.String())
	}
}

func TestExecTerminalLosesNothing(t *testing.T) {
	w := newWorld(t)
	for range 20 {
		var out bytes.Buffer
		_, err := session.Exec(t.Context(), w.open,
			proto.Exec{Argv: []string{"sh", "-c", "stty -opost; head -c 3000 /dev/zero | tr '\\0' z; echo end"}, TTY: true},
			session.IO{Stdout: &out})
		if err != nil || out.String() != strings.Repeat("z", 3000)+"end\n" {
			t.Fatalf("got %d bytes, %v", out.Len(), err)
		}
	}
}

func TestExecTerminalEndOfInput(t *testing.T) {
	w := newWorld(t)
	var out bytes.Buffer
	exit, err := session.Exec(t.Context(), w.open, proto.Exec{Argv: []string{"sh"}, TTY: true},
		session.IO{Stdin: strings.NewReader("exit 5\n"), Stdout: &out})
	if err != nil || exit.Code != 5 {
		t.Errorf("got %+v, %v, %q", exit, err, out.String())
	}
	exit, err = session.Exec(t.Context(), w.open, proto.Exec{Argv: []string{"cat"}, TTY: true},
		session.IO{Stdin: strings.NewReader(""), Stdout: &out})
	if err != nil || exit.Code != 0 {
		t.Errorf("cat: got %+v, %v", exit, err)
	}
}

// A client that goes away hangs its command up.
func TestExecClientVanishes(t *testing.T) {
	if signal.Ignored(syscall.SIGHUP) {
		t.Skip("SKIP: hangups were ignored when this began, as below nohup, and a shell can't undo that")
	}
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	fifo := filepath.Join(w.root, "told")
	if out, _, exit := w.run(t, "mkfifo "+fifo, nil); exit.Code != 0 {
		t.Fatal(out)
	}
	out := &lineWaiter{line: "ready", then: cancel}
	_, err := session.Exec(ctx, w.open,
		proto.Exec{Argv: []string{"sh", "-c", "trap 'echo hung up >" + fifo + "; exit' HUP; echo ready; while :; do sleep 0.1; done"}},
		session.IO{Stdout: out})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	told, err := os.ReadFile(fifo) // blocks until the trap has run
	if err != nil || string(told) != "hung up\n" {
		t.Errorf("got %q, %v", told, err)
	}
}

// A reader that has had enough stops the writer, as in "yes | head".
func TestExecOutputRefused(t *testing.T) {
	w := newWorld(t)
	exit, err := session.Exec(t.Context(), w.open, proto.Exec{Argv: []string{"yes"}}, session.IO{Stdout: &full{}})
	var oe *session.OutputError
	if !errors.As(err, &oe) || !errors.Is(err, io.ErrShortWrite) || exit.Signal != "PIPE" {
		t.Errorf("got %+v, %v", exit, err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func BenchmarkExecTrue(b *testing.B) {
	w := newWorld(b)
	for b.Loop() {
		if _, err := session.Exec(b.Context(), w.open, proto.Exec{Argv: []string{"true"}}, session.IO{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard}); err != nil {
			b.Fatal(err)
		}
	}
}
