// Package host is banger's door to the machine it runs on: other programs, processes and
// their identity, /proc, and what the CPU can do. It knows nothing of VMs or images; the
// rest of banger starts no program and sends no signal except through here.
package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// Process names one process for good: a pid alone is reused, but not within one boot at
// the same start time.
type Process struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"` // field 22 of /proc/PID/stat: clock ticks after boot
	BootID     string `json:"boot_id"`     // /proc/sys/kernel/random/boot_id
}

// Identify returns the identity of the process that has this pid now. errs.NotFound if
// there is none, or only a zombie.
func Identify(pid int) (Process, error) {
	p, st, err := identify(pid)
	if err == nil && st.dead() {
		return Process{}, gone(pid)
	}
	return p, err
}

// identify is Identify for zombies too.
func identify(pid int) (Process, stat, error) {
	boot, err := BootID()
	if err != nil {
		return Process{}, stat{}, err
	}
	st, err := readStat(pid)
	if err != nil {
		return Process{}, stat{}, err
	}
	return Process{PID: pid, StartTicks: st.StartTicks, BootID: boot}, st, nil
}

// BootID returns the id of the running boot, which no other boot of any machine shares.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// Open returns a handle on exactly this process. errs.NotFound if it is gone or a
// zombie, its pid belongs to another process now, or it lived in an earlier boot.
func (p Process) Open() (*Handle, error) {
	h, err := openPID(p.PID)
	if err != nil {
		return nil, err
	}
	// Checked after the pidfd was opened: a process that holds this pid at this moment and
	// started when ours did held it at the open as well, so the pidfd is provably its.
	now, err := Identify(p.PID)
	if err == nil && now != p {
		err = gone(p.PID)
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// Kill ends exactly this process and waits until it has ended. One that is gone already is
// no error.
func (p Process) Kill(ctx context.Context) error {
	h, err := p.Open()
	if errs.KindOf(err) == errs.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.Signal(unix.SIGKILL); err != nil && errs.KindOf(err) != errs.NotFound {
		return err
	}
	return h.Wait(ctx)
}

func gone(pid int) error {
	return errs.New(errs.NotFound, "process %d is not running any more", pid)
}

// Handle refers to one process by pidfd: its signals can't hit another process, even
// after the pid is reused.
type Handle struct {
	file *os.File
	done chan struct{}
}

// openPID opens whatever process has this pid.
func openPID(pid int) (*Handle, error) {
	// Non-blocking only so that os.File hands the descriptor to the runtime's poller: a
	// pidfd becomes readable when its process ends, and the wait costs no thread.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			return nil, gone(pid)
		}
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	h := &Handle{file: os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid)), done: make(chan struct{})}
	conn, err := h.file.SyscallConn()
	if err != nil {
		h.file.Close()
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	go h.watch(conn)
	return h, nil
}

// watch closes done when the process ends, and returns without that when the handle is
// closed first.
func (h *Handle) watch(conn syscall.RawConn) {
	ended := false
	// An error means that the handle was closed.
	_ = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		ended = n == 1 && err == nil && fds[0].Revents&unix.POLLIN != 0
		return ended
	})
	if ended {
		close(h.done)
	}
}

// Signal sends sig to the process. errs.NotFound if it has ended.
func (h *Handle) Signal(sig unix.Signal) error {
	conn, err := h.file.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sent, unix.ESRCH) {
		return errs.New(errs.NotFound, "the process has ended already")
	}
	return sent
}

// Done is closed once the process has ended, also as a zombie. It is not closed by Close.
func (h *Handle) Done() <-chan struct{} { return h.done }

// Wait returns nil once the process has ended, or ctx's error.
func (h *Handle) Wait(ctx context.Context) error {
	select {
	case <-h.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close lets go of the process, which runs on.
func (h *Handle) Close() error { return h.file.Close() }

// stat is the part of /proc/PID/stat that identifies a process.
type stat struct {
	State      byte // R, S, D, Z…
	StartTicks uint64
}

// dead tells that the process only waits to be reaped.
func (s stat) dead() bool { return s.State == 'Z' || s.State == 'X' }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// A process that ends while its file is open answers ESRCH.
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return stat{}, gone(pid)
	}
	if err != nil {
		return stat{}, err
	}
	st, err := parseStat(b)
	if err != nil {
		return stat{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return st, nil
}

// parseStat reads a line of /proc/PID/stat. Its second field, the program's name in
// parentheses, is chosen by the program and may hold spaces, newlines and parentheses;
// none of the later fields can, so the last ")" ends it.
func parseStat(b []byte) (stat, error) {
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return stat{}, errors.New("no program name")
	}
	fields := strings.Fields(string(b[end+1:]))
	const startTime = 22 - 3 // fields are numbered from 1, and the first left is number 3
	if len(fields) <= startTime || len(fields[0]) != 1 {
		return stat{}, fmt.Errorf("%d fields after the program name", len(fields))
	}
	ticks, err := strconv.ParseUint(fields[startTime], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("start time: %w", err)
	}
	return stat{State: fields[0][0], StartTicks: ticks}, nil
}
