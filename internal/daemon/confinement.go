package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor/qemu"
	"banger/internal/jail"
)

// checkConfinement tells how VMMs are confined, and confines one that does nothing.
func (d *Daemon) checkConfinement(ctx context.Context) api.Check {
	const name = "confinement"
	if err := jail.Check(); err != nil {
		return finding(name, warning, "VMMs run as you, and see what you see: "+err.Error(), nil)
	}
	if err := tryJail(ctx, filepath.Join(d.opts.Config.StateDir, "cache")); err != nil {
		return finding(name, failed, "", errs.New(errs.Unavailable, "VMMs can't be confined here, so VMs do not start").Because(err).
			Try("see docs/security.md for what that needs, or start VMs with --unjailed"))
	}
	if lacking, why := jail.Lacking(); lacking != "" {
		return finding(name, warning, fmt.Sprintf("each VMM has a user and files of its own, but no limits by cgroup (%s): %s", lacking, why), nil)
	}
	return finding(name, ok, "each VMM has a user, files, and limits of memory, processes and CPUs of its own", nil)
}

// jailTryLimit bounds the time of a program that only says its version.
const jailTryLimit = 10 * time.Second

func tryJail(ctx context.Context, scratch string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, jailTryLimit)
	defer cancel()
	home, err := os.MkdirTemp(scratch, "jail-")
	if err != nil {
		return err
	}
	log, err := os.CreateTemp(scratch, "jail-log-")
	if err != nil {
		return errors.Join(err, os.Remove(home))
	}
	defer func() {
		err = errors.Join(err, log.Close(), os.Remove(log.Name()), jail.RemoveGroup(home), os.Remove(home))
	}()
	j := jail.Jail{Home: home, ID: jail.ID(filepath.Base(home)), Limits: jail.Limits{MemoryBytes: 1 << 30, CPUs: 1, Processes: 100}}
	child, err := j.Detach(host.Detached{Path: qemu.DefaultBinary, Args: []string{"--version"}, Dir: home, Log: log})
	if err != nil {
		return err
	}
	defer child.Close()
	if child.Handle().Wait(ctx) != nil {
		_ = child.Handle().Signal(unix.SIGKILL) // if that fails, it has ended
	}
	<-child.Done()
	if child.State().Success() {
		return nil
	}
	said, err := os.ReadFile(log.Name())
	return errors.Join(fmt.Errorf("%v: %s", child.State(), strings.TrimSpace(string(said))), err)
}
