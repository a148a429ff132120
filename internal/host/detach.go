package host

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// Detached is a program to start that outlives this process.
type Detached struct {
	Path   string // a path, or a name looked up as LookPath does
	Args   []string
	Env    []string // nil: the daemon's own
	Dir    string
	Stdin  *os.File   // nil: /dev/null
	Stdout *os.File   // nil: Log
	Log    *os.File   // its stderr
	Files  []*os.File // it has them as descriptors 3, 4, …
	// OneCPU keeps it, and all that it starts, on one CPU of the host.
	OneCPU bool
	// Namespaces are those of which it gets new ones: CLONE_NEW… flags.
	Namespaces uintptr
}

// Child is a detached program that this process has started. Its parent stays this
// process for as long as that lives, so it is reaped here; later daemons know it by its
// Process alone.
type Child struct {
	Process Process
	handle  *Handle
	reaped  chan struct{}
	state   *os.ProcessState
}

// envDir is in the environment of what Detach starts, and says where it was started: a process
// that is confined works elsewhere, or so it looks from outside.
const envDir = "BANGER_DIR"

// Detach starts a program in a session of its own. The caller keeps its own copies of the
// files, to close. errs.Unavailable if the host doesn't
// have the program.
func Detach(d Detached) (*Child, error) {
	path, err := LookPath(d.Path)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, d.Args...)
	env := d.Env
	if env == nil {
		env = os.Environ()
	}
	cmd.Env, cmd.Dir, cmd.ExtraFiles = append(slices.Clip(env), envDir+"="+d.Dir), d.Dir, d.Files
	if d.Stdin != nil {
		cmd.Stdin = d.Stdin
	}
	cmd.Stdout, cmd.Stderr = cmp.Or(d.Stdout, d.Log), d.Log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: d.Namespaces}
	start := cmd.Start
	if d.OneCPU {
		start = func() error { return onOneCPU(cmd.Start) }
	}
	if err := start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(path), err)
	}
	// Not reaped yet, so the pid is still its own, even if it has died at once.
	p, _, err := identify(cmd.Process.Pid)
	var h *Handle
	if err == nil {
		h, err = openPID(cmd.Process.Pid)
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, fmt.Errorf("identify %s: %w", filepath.Base(path), err)
	}
	c := &Child{Process: p, handle: h, reaped: make(chan struct{})}
	go func() {
		// How it went is in the state; no pipes are attached, so there is no other error.
		_ = cmd.Wait()
		c.state = cmd.ProcessState
		close(c.reaped)
	}()
	return c, nil
}

// Handle is the process's handle. It is the child's: closed by Close.
func (c *Child) Handle() *Handle { return c.handle }

// Done is closed once the process has ended and is reaped: not even a zombie is left.
func (c *Child) Done() <-chan struct{} { return c.reaped }

// State tells how the process ended. It is nil until Done is closed.
func (c *Child) State() *os.ProcessState {
	select {
	case <-c.reaped:
		return c.state
	default:
		return nil
	}
}

// End kills the process, waits until it is reaped and lets go of the handle.
func (c *Child) End(ctx context.Context) error {
	defer c.Close()
	if err := c.handle.Signal(unix.SIGKILL); err != nil && errs.KindOf(err) != errs.NotFound {
		return err
	}
	select {
	case <-c.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close lets go of the handle. The process runs on and is still reaped.
func (c *Child) Close() error { return c.handle.Close() }
