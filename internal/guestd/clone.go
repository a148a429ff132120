package guestd

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest/proto"
)

// What a clone drops, below its root: random seeds, which another machine has too, and leases
// of addresses that are not its own.
var inherited = []string{
	"var/lib/systemd/random-seed", "var/lib/urandom/random-seed", "var/lib/random-seed", "var/lib/seedrng/*",
	"var/lib/dhcp/*.lease*", "var/lib/dhclient/*.lease*", "var/lib/dhcpcd/*.lease*", "var/lib/NetworkManager/*.lease",
	"run/systemd/netif/leases/*",
}

// shed gives up what a clone may not have in common with this machine, which is about to be
// saved: done once here, it need not be done in each clone while its user waits.
func (a *Agent) shed() error {
	a.conf.Lock()
	defer a.conf.Unlock()
	a.dropInherited()
	// The shortest name there is: those of clones are written over it, and to shorten a file takes
	// more than to lengthen it.
	if err := a.writeFiles(proto.Configure{Hostname: "x"}); err != nil {
		a.Log.Printf("shed: %v", err)
	}
	err := a.rehearse() // what that leaves behind comes to rest with the machine
	err = errors.Join(err, a.System.Shed(a.Init))
	a.System.Sync()
	runtime.GC() // so that a clone's agent is not about to
	return err
}

// becomeAnother takes from a clone what else it shares with the machine that it goes on from.
// What it can't be rid of it works with: the log tells.
func (a *Agent) becomeAnother(c proto.Clone) {
	if c.BootID == "" {
		return
	}
	if err := a.System.SetBootID(c.BootID); err != nil {
		a.Log.Printf("set the boot id: %v", err)
	}
	if c.Shed {
		return
	}
	a.dropInherited()
	go a.System.ReloadJournal(a.Init) // which takes its time
}

func (a *Agent) dropInherited() {
	for _, pattern := range inherited {
		found, _ := filepath.Glob(filepath.Join(a.Root, pattern)) // the patterns are well-formed
		for _, path := range found {
			if err := os.Remove(path); err != nil {
				a.Log.Printf("drop what another machine has too: %v", err)
			}
		}
	}
}

// adjustClock moves the clock and tells what it shows.
func (a *Agent) adjustClock(c proto.Clock) (proto.Clock, error) {
	if c.AdjustNanos != 0 {
		if err := a.System.SetTime(a.System.Now().Add(time.Duration(c.AdjustNanos))); err != nil {
			return c, err
		}
	}
	return proto.Clock{UnixNanos: a.System.Now().UnixNano()}, nil
}

// hookDir has the image's own programs that are to be run in each clone, by name.
const hookDir = "etc/banger/on-clone.d"

// hookLimit bounds one of them: the clone's user waits for it.
const hookLimit = 10 * time.Second

// runHooks runs what the image wants to be done in a clone before anything else is.
func (a *Agent) runHooks(c proto.Configure) {
	entries, err := os.ReadDir(filepath.Join(a.Root, hookDir))
	if err != nil {
		return // there is none
	}
	for _, e := range entries {
		path := filepath.Join(a.Root, hookDir, e.Name())
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if err := a.runHook(path, c); err != nil {
			a.Log.Printf("%s: %v", path, err)
		}
	}
}

func (a *Agent) runHook(path string, c proto.Configure) error {
	ctx, cancel := context.WithTimeout(context.Background(), hookLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + rootPath, "HOME=/root", "BANGER_VM=" + c.Hostname, "BANGER_MACHINE_ID=" + c.MachineID}
	cmd.Stdout, cmd.Stderr = a.Log.Writer(), a.Log.Writer()
	cmd.WaitDelay = time.Second // what it left in the background may keep its output open
	if err := a.System.Exposed(cmd.Start); err != nil {
		return err
	}
	return cmd.Wait()
}

// bootIDFile is what stands in the place of the kernel's own, which it makes once and keeps.
const (
	bootIDFile   = "/run/banger/boot_id"
	kernelBootID = "/proc/sys/kernel/random/boot_id"
)

// SetBootID puts a file in the place of the kernel's.
func (l *Linux) SetBootID(id string) error {
	text := []byte(id + "\n")
	if err := overwrite(kernelBootID, text, len(text)); err == nil { // it is that file already
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(bootIDFile), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(bootIDFile, text, 0o644); err != nil {
		return err
	}
	if err := unix.Mount(bootIDFile, kernelBootID, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "mount", Path: kernelBootID, Err: err}
	}
	return nil
}

// Sync has all that was written to files be on their disks.
func (l *Linux) Sync() { unix.Sync() }

// ReloadJournal ends systemd's journal, which systemd starts again at once, with what is
// written to it meanwhile: it has read the ids once and for all.
func (l *Linux) ReloadJournal(init string) {
	if journal := findJournal(init); journal >= 0 {
		_ = unix.PidfdSendSignal(journal, unix.SIGTERM, nil, 0) // if it has ended it starts anew as well
		unix.Close(journal)
	}
}

// findJournal returns a pidfd of systemd's journal, or -1.
func findJournal(init string) int {
	if !isSystemd(init) {
		return -1
	}
	names, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is well-formed
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(comm)) != "systemd-journal" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			continue
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			return fd
		}
	}
	return -1
}
