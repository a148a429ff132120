package jail

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// groupRoot is where systems mount the hierarchy of cgroups of version 2.
const groupRoot = "/sys/fs/cgroup"

// period is that of CPU limits, in microseconds: the kernel's own default.
const period = 100_000

// Group is the cgroup of what has this home, where they are not systemd's (see scope.go). Those
// whose homes lie in one directory are in one that bears its hash, so that two daemons do not meet.
func Group(home string) string {
	return filepath.Join(groupsOf(filepath.Dir(home)), filepath.Base(home))
}

func groupsOf(dir string) string { return filepath.Join(groupRoot, mark(dir)) }

// mark tells those whose homes lie in this directory from others.
func mark(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "banger-" + hex.EncodeToString(sum[:4])
}

// controllers are those that limits need.
var controllers = []string{"memory", "pids", "cpu"}

// Lacking names the controllers that this host has not, and why; "" if it has all. Those that
// are there and not in use it switches on, unless systemd does.
func Lacking() (names, why string) {
	var st unix.Statfs_t
	if err := unix.Statfs(groupRoot, &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return strings.Join(controllers, ", "), "there is no hierarchy of cgroups of version 2 at " + groupRoot
	}
	check := enable
	if systemdRuns() {
		check = offers
	}
	var lack []string
	for _, c := range controllers {
		if err := check(groupRoot, c); err != nil {
			lack, why = append(lack, c), err.Error()
		}
	}
	return strings.Join(lack, ", "), why
}

// enable has a controller limit what is below a cgroup.
func enable(group, controller string) error {
	const name = "cgroup.subtree_control"
	if on, err := os.ReadFile(filepath.Join(group, name)); err == nil && slices.Contains(strings.Fields(string(on)), controller) {
		return nil
	}
	return set(group, name, "+"+controller)
}

// offers returns an error unless a controller can limit what is below a cgroup.
func offers(group, controller string) error {
	all, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err == nil && !slices.Contains(strings.Fields(string(all)), controller) {
		err = fmt.Errorf("the kernel offers only %s there", strings.TrimSpace(string(all)))
	}
	return err
}

// setting is a limit, as a cgroup has it.
type setting struct{ controller, file, value string }

func (l Limits) settings() (all []setting) {
	if l.MemoryBytes > 0 {
		all = append(all, setting{"memory", "memory.max", strconv.FormatInt(l.MemoryBytes, 10)})
	}
	if l.Processes > 0 {
		all = append(all, setting{"pids", "pids.max", strconv.Itoa(l.Processes)})
	}
	if l.CPUs > 0 {
		all = append(all, setting{"cpu", "cpu.max", fmt.Sprintf("%d %d", l.CPUs*period, period)})
	}
	return all
}

// join is how a process gets into its cgroup.
type join struct {
	Group string // the cgroup, which is there
	Scope bool   // systemd makes it
}

// prepare makes the cgroup of home, with those limits that the host can set, unless systemd is to
// make it. Where the host can set none there is none to join.
func prepare(home string, l Limits) (_ join, err error) {
	lacking, _ := Lacking()
	if lacking == strings.Join(controllers, ", ") {
		return join{}, nil
	}
	if err := RemoveGroup(home); err != nil { // of an earlier life
		return join{}, err
	}
	if systemdRuns() {
		return join{Scope: true}, nil
	}
	group := Group(home)
	const tries = 3 // whoever removes the last of its kind takes their parent away
	for range tries {
		if err = os.MkdirAll(group, 0o755); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return join{}, fmt.Errorf("make a cgroup: %w", err)
	}
	for _, s := range l.settings() {
		if !strings.Contains(lacking, s.controller) {
			err = errors.Join(err, enable(filepath.Dir(group), s.controller), set(group, s.file, s.value))
		}
	}
	if err != nil {
		return join{}, errors.Join(fmt.Errorf("set the limits of a cgroup: %w", err), RemoveGroup(home))
	}
	return join{Group: group}, nil
}

// enter puts this process, which is that of home, into its cgroup.
func (j join) enter(home string, l Limits) (err error) {
	switch {
	case j.Scope:
		err = startScope(home, l)
	case j.Group != "":
		err = set(j.Group, "cgroup.procs", "0")
	}
	if err != nil {
		return fmt.Errorf("enter its cgroup: %w", err)
	}
	return nil
}

func set(group, name, value string) error {
	return os.WriteFile(filepath.Join(group, name), []byte(value), 0)
}

// RemoveGroup removes the cgroup of home, whose processes have ended. One that is not there is
// passed over.
func RemoveGroup(home string) error {
	if systemdRuns() {
		return stopScopes(home)
	}
	group := Group(home)
	if err := os.Remove(group); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a cgroup: %w", err)
	}
	_ = os.Remove(filepath.Dir(group)) // in vain while there are others
	return nil
}

// Groups lists the cgroups of homes in dir.
func Groups(dir string) ([]host.Object, error) {
	if systemdRuns() {
		return scopes(dir)
	}
	entries, err := os.ReadDir(groupsOf(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var found []host.Object
	for _, e := range entries {
		if e.IsDir() {
			found = append(found, groupObject(filepath.Join(groupsOf(dir), e.Name()), e.Name()))
		}
	}
	return found, err
}

func groupObject(group, home string) host.Object {
	return host.Object{Kind: "cgroup", Name: group, Path: home}
}
