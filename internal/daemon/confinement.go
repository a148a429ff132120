package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/jail"
)

// checkConfinement tells how VMMs are confined, and confines one that does nothing.
func (d *Daemon) checkConfinement(ctx context.Context) api.Check {
	const name = "confinement"
	if err := jail.Check(); err != nil {
		return finding(name, warning, "VMMs run as you, and see what you see: "+err.Error(), nil)
	}
	if err := d.jails.run(ctx, d.vmm.of(d.usualBackend(ctx)).kvm.Program()); err != nil {
		return finding(name, failed, "", errs.New(errs.Unavailable, "VMMs can't be confined here, so VMs do not start").Because(err).
			Try("see docs/security.md for what that needs, or start VMs with --unjailed"))
	}
	if lacking, why := jail.Lacking(); lacking != "" {
		return finding(name, warning, fmt.Sprintf("each VMM has a user and files of its own, but no limits by cgroup (%s): %s", lacking, why), nil)
	}
	return finding(name, ok, "each VMM has a user, files, and limits of memory, processes and CPUs of its own", nil)
}

// jailTry confines programs that do nothing, one at a time, to learn whether that works here.
type jailTry struct {
	mu   sync.Mutex
	home string // a directory while one is tried
}

// jailTryLimit bounds the time of a program that only says its version.
const jailTryLimit = 10 * time.Second

// run confines a program that is asked for its version.
func (j *jailTry) run(ctx context.Context, program string) (err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, jailTryLimit)
	defer cancel()
	if err := errors.Join(j.clear(), os.Mkdir(j.home, 0o700)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.clear()) }()
	log, err := os.Create(filepath.Join(j.home, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	in := jail.Jail{Home: j.home, ID: jail.ID(filepath.Base(j.home)), Limits: jail.Limits{MemoryBytes: 1 << 30, CPUs: 1, Processes: 100}}
	child, err := in.Detach(host.Detached{Path: program, Args: []string{"--version"}, Dir: j.home, Log: log})
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

// clear takes away what a daemon that died during a try has left.
func (j *jailTry) clear() error {
	return errors.Join(jail.RemoveGroup(j.home), os.RemoveAll(j.home))
}
