package main

import (
	"os"
	"os/exec"
	"syscall"

	"github.com/vishvananda/netlink"
)

// inside marks the process that measures, in a network namespace of its own: as root VMs are
// on a bridge, which the real host is to be spared.
const inside = "BANGER_BENCH_NETNS"

// isolate runs this program again in a network namespace and returns how that ended. In
// there, and for those who can't have one, again is false.
func isolate() (again bool, code int, err error) {
	if os.Getenv(inside) != "" {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		return false, 0, err
	}
	if os.Geteuid() != 0 {
		return false, 0, nil
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); c.ProcessState == nil {
		return true, 1, err
	}
	return true, c.ProcessState.ExitCode(), nil
}
