package guestd

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopTimeout is how long processes have to end after SIGTERM.
const stopTimeout = 5 * time.Second

// runInit is the init of an image without one: it starts the agent, reaps what others
// leave, and ends the machine when asked to, by the agent or by the image's own poweroff,
// halt and reboot, which use busybox's signals.
func runInit(args bootArgs) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGCHLD, sigPowerOff, sigReboot,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTERM, syscall.SIGINT)
	agent, ready, err := startAgent("")
	if err != nil {
		return err
	}
	unix.Close(ready) // no program here waits for the configuration
	for sig := range signals {
		switch sig {
		case syscall.SIGCHLD:
			reap(agent)
		case sigReboot, syscall.SIGTERM, syscall.SIGINT:
			return endMachine(agent, unix.LINUX_REBOOT_CMD_RESTART)
		default:
			return endMachine(agent, args.powerOff())
		}
	}
	return nil
}

// reap collects all children that have ended.
func reap(agent int) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if pid == agent {
			complain(fmt.Errorf("the agent ended with status %d", ws.ExitStatus()))
		}
	}
}

// endMachine stops all processes, leaves the disks clean and ends the machine.
func endMachine(agent, how int) error {
	stop(agent)
	unix.Sync()
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		complain(fmt.Errorf("remount the root read-only: %w", err))
	}
	return os.NewSyscallError("reboot", unix.Reboot(how))
}

// stop asks every process but the agent to end, waits for them, and kills the rest.
func stop(agent int) {
	ps := processes(agent)
	for _, p := range ps {
		unix.PidfdSendSignal(p, unix.SIGTERM, nil, 0)
		unix.PidfdSendSignal(p, unix.SIGCONT, nil, 0) // a stopped one could not react
	}
	deadline := time.Now().Add(stopTimeout)
	for _, p := range ps {
		fds := []unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}
		for left := time.Until(deadline); left > 0; left = time.Until(deadline) {
			if n, err := unix.Poll(fds, int(left.Milliseconds())+1); n > 0 || err != unix.EINTR {
				break
			}
		}
		unix.Close(p)
	}
	// Those that were born meanwhile included.
	for _, p := range processes(agent) {
		unix.PidfdSendSignal(p, unix.SIGKILL, nil, 0)
		unix.Poll([]unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}, int(time.Second.Milliseconds()))
		unix.Close(p)
	}
}

// processes opens a pidfd of each process that is neither this one, nor the agent, nor the
// kernel's.
func processes(agent int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var fds []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == agent {
			continue
		}
		if _, err := os.Readlink("/proc/" + e.Name() + "/exe"); err != nil {
			continue // the kernel's own, or a zombie
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds = append(fds, fd)
		}
	}
	return fds
}
