package guestd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/guest/proto"
)

// spec is a command to start.
type spec struct {
	argv []string // empty: the login shell
	env  []string // beyond the user's own
	dir  string   // empty: the user's home
	user account
	tty  bool
	size *proto.Size
	// detach sends the output to the machine's console; nothing else is connected.
	detach bool
}

// stdio is what a command is connected to. Nil means /dev/null. With a terminal, out gets
// everything and err is unused. A writer with a CloseWrite method has it called after its
// last byte.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// job is a command that was started, in a session and process group of its own.
type job struct {
	pid int
	pty *os.File // the master, with a terminal

	mu     sync.Mutex // guards exited; held for as long as pid must be ours
	exited bool

	outputs []*output
	inputs  []*os.File
}

// cantRun is the exit of a command that can't be run, after the shell's convention.
type cantRun struct{ proto.Exit }

func (c *cantRun) Error() string { return c.Message }

// start runs a command. The error is a *cantRun where the command itself is at fault.
func (a *Agent) start(s spec, std stdio) (*job, error) {
	env := lastWins(slices.Concat(a.environment(s.user, s.tty), a.configuredEnv(), s.env))
	dir, err := a.workdir(s)
	if err != nil {
		return nil, err
	}
	path, argv := s.user.shell, []string{"-" + filepath.Base(s.user.shell)}
	if len(s.argv) > 0 {
		argv = s.argv
		if path, err = lookPath(s.argv[0], getenv(env, "PATH"), dir); err != nil {
			return nil, err
		}
	}
	j := &job{}
	child, err := j.connect(s, std)
	if err != nil {
		j.closeOwn()
		return nil, err
	}
	attr := &syscall.ProcAttr{Dir: dir, Env: env, Files: child.fds, Sys: &syscall.SysProcAttr{
		Setsid:  true,
		Setctty: s.tty,
	}}
	if s.user.uid != uint32(os.Geteuid()) {
		attr.Sys.Credential = &syscall.Credential{Uid: s.user.uid, Gid: s.user.gid, Groups: s.user.groups}
	}
	err = a.System.Exposed(func() (err error) {
		j.pid, err = syscall.ForkExec(path, argv, attr)
		return err
	})
	child.close()
	if err != nil {
		j.closeOwn()
		return nil, execError(argv[0], err)
	}
	j.pump(std)
	return j, nil
}

// workdir gives the directory to start in.
func (a *Agent) workdir(s spec) (string, error) {
	if s.dir == "" {
		if fi, err := os.Stat(s.user.home); err != nil || !fi.IsDir() {
			return "/", nil
		}
		return s.user.home, nil
	}
	dir := s.dir
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(s.user.home, dir)
	}
	if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
		return "", &cantRun{proto.Exit{Code: 126, Message: dir + ": no such directory"}}
	}
	return dir, nil
}

// lookPath finds a command as a shell in dir would.
func lookPath(name, path, dir string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	denied := false
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		file := filepath.Join(d, name)
		fi, err := os.Stat(file)
		if err != nil || fi.IsDir() || name == "" {
			continue
		}
		if fi.Mode()&0o111 != 0 {
			return file, nil
		}
		denied = true
	}
	if denied {
		return "", execError(name, syscall.EACCES)
	}
	return "", &cantRun{proto.Exit{Code: 127, Message: name + ": command not found"}}
}

func execError(name string, err error) error {
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) {
		return errs.New(errs.Unavailable, "the guest can't start another process").Because(err)
	}
	code := 126
	if errors.Is(err, fs.ErrNotExist) {
		code = 127
	}
	return &cantRun{proto.Exit{Code: code, Message: fmt.Sprintf("%s: %v", name, err)}}
}

// wait returns once the command has ended, before all its output is copied.
func (j *job) wait() proto.Exit {
	// The pid stays a zombie, and ours, until the lock is held: no signal can hit
	// another process.
	for {
		err := unix.Waitid(unix.P_PID, j.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	j.mu.Lock()
	j.exited = true
	var ws syscall.WaitStatus
	_, err := syscall.Wait4(j.pid, &ws, 0, nil)
	j.mu.Unlock()
	for _, o := range j.outputs {
		o.finish()
	}
	for _, in := range j.inputs {
		in.Close()
	}
	switch {
	case err != nil:
		return proto.Exit{Code: 126, Message: "wait for the command: " + err.Error()}
	case ws.Signaled():
		name := strings.TrimPrefix(unix.SignalName(ws.Signal()), "SIG")
		return proto.Exit{Code: 128 + int(ws.Signal()), Signal: name}
	default:
		return proto.Exit{Code: ws.ExitStatus()}
	}
}

// flush returns once all output has been copied, and releases what the job held.
func (j *job) flush() {
	for _, o := range j.outputs {
		<-o.done
	}
	if j.pty != nil {
		j.pty.Close()
	}
}

// signal sends a signal to the command's process group; names are those of
// proto.ExecInput. Others, and signals to a command that has ended, are dropped.
func (j *job) signal(name string) {
	switch name {
	case "INT", "TERM", "HUP", "QUIT", "KILL", "USR1", "USR2", "WINCH", "TSTP", "CONT":
		j.kill(unix.SignalNum("SIG" + name))
	}
}

func (j *job) kill(sig syscall.Signal) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.exited {
		unix.Kill(-j.pid, sig)
	}
}

// hangup tells the command that its client has gone, and lets go of its input and output.
func (j *job) hangup() {
	j.kill(unix.SIGHUP)
	j.kill(unix.SIGCONT) // a stopped command could not react
}
