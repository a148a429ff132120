package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

const (
	// tailBytes is how much of a program's last words an error keeps.
	tailBytes = 8 << 10

	// grace is how long a cancelled program has between SIGTERM and SIGKILL, and how long
	// descendants of an ended one may keep its pipes open.
	grace = 5 * time.Second
)

// Command is a program to run to its end.
type Command struct {
	Path   string   // a path, or a name looked up as LookPath does
	Args   []string // without the program's own name
	Env    []string // nil: the daemon's own
	Dir    string
	Stdin  io.Reader // nil: /dev/null
	Stdout io.Writer // nil: discarded
	Stderr io.Writer // gets a copy; the end is kept for the error either way
	// OwnMounts: what the program mounts, where it may, nobody else sees, and it goes with the program.
	OwnMounts bool
}

// ExitError says that a program ran and failed.
type ExitError struct {
	Program string // its base name
	Code    int    // exit status; 128+n for signal n
	Signal  string // of a program ended by one: "killed"
	Tail    string // the end of what it wrote to stderr, at most 8 KiB
}

// Error names the program, how it ended and its last line.
func (e *ExitError) Error() string {
	how := fmt.Sprintf("exit status %d", e.Code)
	if e.Signal != "" {
		how = e.Signal
	}
	if last := lastLine(e.Tail); last != "" {
		how += ": " + last
	}
	return e.Program + ": " + how
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return strings.TrimSpace(s[strings.LastIndexByte(s, '\n')+1:])
}

// Run runs a program to its end in a process group of its own. When ctx is done the
// group gets SIGTERM, then after a grace of 5 s SIGKILL, and Run returns ctx's error.
// Errors: *ExitError if it failed, errs.Unavailable if the host doesn't have it.
func Run(ctx context.Context, c Command) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	path, err := LookPath(c.Path)
	if err != nil {
		return err
	}
	tail := &tailBuffer{limit: tailBytes}
	cmd := exec.Command(path, c.Args...)
	cmd.Env, cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Env, c.Dir, c.Stdin, c.Stdout, tail
	if c.Stderr != nil {
		cmd.Stderr = io.MultiWriter(tail, c.Stderr)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.OwnMounts && mayMount() {
		cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
	}
	cmd.WaitDelay = grace
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", filepath.Base(path), err)
	}
	h, err := openPID(cmd.Process.Pid)
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return err
	}
	defer h.Close()
	if h.Wait(ctx) != nil {
		endGroup(cmd.Process.Pid, h)
	}
	err = cmd.Wait()
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("%s was stopped: %w", filepath.Base(path), cause)
	}
	return exitError(filepath.Base(path), err, tail)
}

// mayMount tells whether this process can mount, which root in a container, say, often can't.
func mayMount() bool {
	var has [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &has[0])
	return err == nil && has[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// endGroup ends the process group led by pid, which nobody has reaped: as long as that
// is so, the number can't be given to another process or group.
func endGroup(pid int, leader *Handle) {
	_ = unix.Kill(-pid, unix.SIGTERM)
	bound, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	_ = leader.Wait(bound)
	_ = unix.Kill(-pid, unix.SIGKILL) // what is left of the group, and a leader that stayed
}

// Output runs a program as Run does and returns what it wrote to stdout.
func Output(ctx context.Context, c Command) ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := Run(ctx, c)
	return out.Bytes(), err
}

func exitError(program string, err error, tail *tailBuffer) error {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		if err != nil {
			return fmt.Errorf("%s: %w", program, err)
		}
		return nil
	}
	e := &ExitError{Program: program, Code: exit.ExitCode(), Tail: tail.String()}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Code, e.Signal = 128+int(ws.Signal()), ws.Signal().String()
	}
	return e
}

// LookPath finds a program: a path with a slash stands for itself, a name is sought in
// PATH and then where Debian keeps what it believes only root needs. errs.Unavailable,
// with the package to install if known, when there is none.
func LookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	if !strings.Contains(name, "/") {
		for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, nil
			}
		}
	}
	missing := errs.New(errs.Unavailable, "the program %s is not there", name)
	if errors.Is(err, os.ErrPermission) {
		missing = errs.New(errs.Unavailable, "the program %s can't be run", name).Because(err)
	}
	if pkg := debianPackage(filepath.Base(name)); pkg != "" {
		return "", missing.Try("install Debian's package %s: apt-get install %s", pkg, pkg)
	}
	return "", missing
}

// debianPackage names the package that has a program, or "".
func debianPackage(program string) string {
	switch program {
	case "qemu-system-x86_64":
		return "qemu-system-x86"
	case "qemu-img", "qemu-io", "qemu-nbd":
		return "qemu-utils"
	case "mkfs.ext4", "mke2fs", "e2fsck", "resize2fs", "debugfs", "tune2fs", "dumpe2fs":
		return "e2fsprogs"
	case "mmdebstrap", "tar":
		return program
	case "unshare":
		return "util-linux"
	case "newuidmap", "newgidmap":
		return "uidmap"
	case "ssh", "scp", "sftp", "ssh-keygen":
		return "openssh-client"
	case "dpkg-deb", "dpkg":
		return "dpkg"
	case "depmod", "modprobe":
		return "kmod"
	case "apt-get", "apt-cache", "apt-config":
		return "apt"
	}
	return ""
}

// tailBuffer keeps the last bytes written to it.
type tailBuffer struct {
	limit int
	b     []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.b = append(t.b, p[max(0, len(p)-t.limit):]...)
	if over := len(t.b) - t.limit; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string { return string(t.b) }
