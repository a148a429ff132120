package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"banger"
	"banger/api"
	"banger/internal/disk/dm/devmapper"
	"banger/internal/host"
	"banger/internal/runtimedir"
)

const (
	lowMemory = 512 << 20 // bytes available, below which the doctor warns: less than a VM has
	lowInodes = 10000
)

// checkHost examines what is no part of banger.
func (d *Daemon) checkHost(ctx context.Context) []api.Check {
	checks := []api.Check{
		d.checkTools(), checkMapper(), checkClock(), checkMemory(), checkInodes(d.opts.Config.StateDir),
		d.checkBundleFiles(ctx), d.checkCensus(ctx),
	}
	if os.Geteuid() != 0 {
		checks = append(checks, checkSubordinateIDs(ctx))
	}
	return checks
}

// unwell is a finding of something that is not as it should be, and the command that mends it.
func unwell(name, status, hint string, fix []string, detail string, args ...any) api.Check {
	return api.Check{Name: name, Status: status, Detail: fmt.Sprintf(detail, args...), Hint: hint, Fix: fix}
}

// tools are the programs that banger runs, other than VMMs, and the Debian packages that have them.
var tools = []struct{ program, pkg, use string }{
	{"mkfs.ext4", "e2fsprogs", "images and kernels are made with it"},
	{"depmod", "kmod", "kernels are imported with it"},
	{"dpkg-deb", "dpkg", "kernels are built with it"},
	{"mmdebstrap", "mmdebstrap", "images are built with it"},
}

func (d *Daemon) checkTools() api.Check {
	var missing, packages []string
	for _, t := range tools {
		if _, err := host.LookPath(t.program); err != nil {
			missing = append(missing, t.program+": "+t.use)
			packages = append(packages, t.pkg)
		}
	}
	if len(missing) == 0 {
		return finding("tools", ok, "all programs are there that banger runs", nil)
	}
	return unwell("tools", warning, "install "+strings.Join(packages, " "), append([]string{"apt-get", "install", "-y", "--no-install-recommends"}, packages...),
		"missing: %s", strings.Join(missing, "; "))
}

// checkMapper asks the kernel for the targets of device-mapper.
func checkMapper() api.Check {
	const name = "device-mapper"
	if os.Geteuid() != 0 {
		return finding(name, ok, "only root has it, and no VM needs it", nil)
	}
	if err := devmapper.New(devmapper.Host).HasTarget("snapshot"); err != nil {
		return unwell(name, warning, "only --disk-driver dm needs it; load it: modprobe dm_snapshot", []string{"modprobe", "dm_snapshot"}, "%s", err)
	}
	return finding(name, ok, "the kernel has the snapshot target", nil)
}

// checkClock asks the kernel whether anything keeps the clock that guests are given.
func checkClock() api.Check {
	kept, err := clockIsKept()
	if err != nil {
		return finding("time", warning, "", err)
	}
	if !kept {
		return unwell("time", warning, "guests are given this host's time; keep it with systemd-timesyncd or chrony", nil, "nothing keeps the host's clock right")
	}
	return finding("time", ok, "the host's clock is kept", nil)
}

// clockIsKept asks systemd where its units let nobody near the clock, not even to read how it
// is kept.
func clockIsKept() (bool, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if !errors.Is(err, unix.EPERM) {
		return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, err
	}
	bus, err := dbus.ConnectSystemBus()
	if err != nil {
		return false, fmt.Errorf("ask systemd whether the clock is kept: %w", err)
	}
	defer bus.Close()
	var kept bool
	err = bus.Object("org.freedesktop.timedate1", "/org/freedesktop/timedate1").StoreProperty("org.freedesktop.timedate1.NTPSynchronized", &kept)
	if err != nil {
		return false, fmt.Errorf("ask systemd whether the clock is kept: %w", err)
	}
	return kept, nil
}

func checkMemory() api.Check {
	available, err := host.AvailableBytes("/")
	switch {
	case err != nil:
		return finding("memory", failed, "", err)
	case available < lowMemory:
		return unwell("memory", warning, "stop VMs that are not needed: banger stats shows what each takes", nil, "%d MiB are available, less than one VM has", available>>20)
	}
	return finding("memory", ok, fmt.Sprintf("%d MiB available", available>>20), nil)
}

func checkInodes(dir string) api.Check {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return finding("inodes", failed, "", err)
	}
	if st.Files > 0 && st.Ffree < lowInodes { // some filesystems have no fixed number
		return unwell("inodes", warning, "remove small files from that filesystem", nil, "%d more files can be made in %s", st.Ffree, dir)
	}
	return finding("inodes", ok, "files can be made in "+dir, nil)
}

// checkSubordinateIDs makes a namespace with the ids that images of a user's are built in.
func checkSubordinateIDs(ctx context.Context) api.Check {
	const name = "subordinate ids"
	err := host.Run(ctx, host.Command{Path: "unshare", Args: []string{"--user", "--map-root-user", "--map-auto", "true"}})
	if err != nil {
		return unwell(name, warning, "to build images without root: install uidmap, and as root give yourself ids: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 NAME", nil, "%s", err)
	}
	return finding(name, ok, "images can be built without root", nil)
}

// checkBundleFiles compares the bundle's files with its record, and that with what there
// should be. Content is not read: banger runtime verify does that.
func (d *Daemon) checkBundleFiles(ctx context.Context) api.Check {
	const name = "bundle files"
	build := []string{"banger", "runtime", "build"}
	b, err := d.bundle()
	if err != nil { // told by the check of the bundle
		return finding(name, warning, "there is no bundle to look at", nil)
	}
	problems, err := runtimedir.Quick(ctx, b.Dir)
	if err != nil {
		return finding(name, failed, "", err)
	}
	if len(problems) > 0 {
		return unwell(name, failed, "banger runtime verify lists all; fetch or build it anew: banger runtime fetch, banger runtime build --force", nil,
			"%d differ from the record, first %s: %s", len(problems), problems[0].Path, problems[0].Problem)
	}
	missing, err := runtimedir.Missing(b.Dir, banger.RuntimeBundle)
	if err != nil {
		return finding(name, failed, "", err)
	}
	if len(missing) > 0 {
		return unwell(name, warning, "build or fetch what is missing: banger runtime build", build, "the bundle has no %s", strings.Join(missing, ", "))
	}
	return finding(name, ok, "all are there, as large as they were made", nil)
}

func (d *Daemon) checkCensus(ctx context.Context) api.Check {
	const name = "leftovers"
	found, err := d.vms.Census(ctx)
	if err != nil {
		return finding(name, failed, "", err)
	}
	wrong := 0
	for _, f := range found {
		if f.Problem != "" {
			wrong++
		}
	}
	if wrong > 0 {
		return unwell(name, warning, "banger system census lists them; banger system prune removes what is proven banger's", []string{"banger", "system", "prune", "-y"},
			"%d things of VMs are on the host and should not be, or are missing", wrong)
	}
	return finding(name, ok, "nothing is on the host that no VM explains", nil)
}
