package guestd

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// agentName is the agent's argv[0]. The '@' tells systemd's last round of kills that this
// process serves the root filesystem's storage and must outlive it.
const agentName = "@banger-guest"

// IsAgent tells from the command line whether this process was started by startAgent.
func IsAgent(argv []string) bool { return len(argv) == 2 && argv[0] == agentName }

// readyFD is the descriptor by which the agent tells that it has been configured.
const readyFD = 3

// configureTimeout is how long the image's init waits for the host to configure the
// machine; then it starts as the image is.
const configureTimeout = 60 * time.Second

// startAgent starts this program again as the agent, in a session of its own. The
// program's file is deleted by now; the link in /proc still leads to it. From ready one
// byte can be read once the host has configured the machine.
func startAgent(init string) (pid, ready int, err error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(pipe[1])
	pid, err = syscall.ForkExec("/proc/self/exe", []string{agentName, init}, &syscall.ProcAttr{
		Dir: "/",
		// Code that is being translated for the first time takes so long that the runtime would
		// stop it by a signal again and again, whose handling is translated then too. Nothing
		// here computes for long without a call.
		Env:   []string{"PATH=" + rootPath, "HOME=/", "GODEBUG=asyncpreemptoff=1"},
		Files: []uintptr{0, 1, 2, uintptr(pipe[1])},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		unix.Close(pipe[0])
		return 0, 0, fmt.Errorf("start the agent: %w", err)
	}
	return pid, pipe[0], nil
}

var (
	errAgentDied    = errors.New("the agent ended before it was configured")
	errUnconfigured = errors.New("the host did not configure the machine, going on without")
)

func awaitReady(fd int) error {
	deadline := time.Now().Add(configureTimeout)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errUnconfigured
		}
		_, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		if fds[0].Revents != 0 {
			break
		}
	}
	var b [1]byte
	if n, err := unix.Read(fd, b[:]); n != 1 {
		return errors.Join(errAgentDied, err)
	}
	return nil
}

// Memory of the agent, in bytes: the garbage collector works harder above this.
const agentMemory = 48 << 20

// RunAgent serves the control channel for as long as the machine lives. argv is the one
// that startAgent made.
func RunAgent(argv []string) error {
	// Two, so that reading a file and sending it overlap; waking still more CPUs costs more,
	// in a machine without KVM, than running beside each other gains.
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(agentMemory)
	// Handled and dropped: ignored signals would be passed on to commands.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)

	os.WriteFile("/proc/self/comm", []byte("banger-guest"), 0) // "exe" tells a person nothing

	ready := os.NewFile(readyFD, "ready")
	unix.CloseOnExec(readyFD)
	system := NewLinux()
	// Loopback needs no word of the host's, which takes a while to come. Configure tells if
	// this fails, for it does the same again.
	go func() { _ = loopbackUp() }()
	a := New(Config{
		Root:   "/",
		Init:   argv[1],
		System: system,
		Log:    log.New(os.Stderr, "banger-guest: ", 0),
		Configured: func() {
			ready.Write([]byte{1})
			ready.Close()
		},
	})
	return a.serveHost()
}

// Main is the whole program: the machine's first process, or the agent that it starts.
func Main(argv []string) int {
	switch {
	case IsAgent(argv):
		complain(fmt.Errorf("the agent ended: %w", RunAgent(argv)))
		return 1
	case os.Getpid() == 1:
		Abort(Boot())
		return 1
	}
	fmt.Fprintf(os.Stderr, "%s runs as the first process of a virtual machine\n", strings.TrimPrefix(argv[0], "@"))
	return 2
}
