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

// Group is the cgroup of what has this home. Those whose homes lie in one directory are in one
// that bears its hash, so that two daemons do not meet.
func Group(home string) string {
	return filepath.Join(groupsOf(filepath.Dir(home)), filepath.Base(home))
}

func groupsOf(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(groupRoot, "banger-"+hex.EncodeToString(sum[:4]))
}

// controllers are those that limits need.
var controllers = []string{"memory", "pids", "cpu"}

// Lacking names the controllers that this host has not, and why; "" if it has all. Those that
// are there and not in use it switches on.
func Lacking() (names, why string) {
	var st unix.Statfs_t
	if err := unix.Statfs(groupRoot, &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return strings.Join(controllers, ", "), "there is no hierarchy of cgroups of version 2 at " + groupRoot
	}
	var lack []string
	for _, c := range controllers {
		if err := enable(groupRoot, c); err != nil {
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

// setting is a limit, as a cgroup has it.
type setting struct{ controller, file, value string }

func (l Limits) settings() (all []setting) {
	if l.MemoryBytes > 0 {
		all = append(all, setting{"memory", "memory.max", strconv.FormatInt(l.MemoryBytes, 10)},
			// A VMM that has lost one of its threads is of no use.
			setting{"memory", "memory.oom.group", "1"})
	}
	if l.Processes > 0 {
		all = append(all, setting{"pids", "pids.max", strconv.Itoa(l.Processes)})
	}
	if l.CPUs > 0 {
		all = append(all, setting{"cpu", "cpu.max", fmt.Sprintf("%d %d", l.CPUs*period, period)})
	}
	return all
}

// makeGroup makes the cgroup of home, with those limits that the host can set, and opens it.
// A host that can set none has none: nil.
func makeGroup(home string, l Limits) (_ *os.File, err error) {
	lacking, _ := Lacking()
	if lacking == strings.Join(controllers, ", ") {
		return nil, nil
	}
	if err := RemoveGroup(home); err != nil { // of an earlier life
		return nil, err
	}
	group := Group(home)
	const tries = 3 // whoever removes the last of its kind takes their parent away
	for range tries {
		if err = os.MkdirAll(group, 0o755); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make a cgroup: %w", err)
	}
	for _, s := range l.settings() {
		if !strings.Contains(lacking, s.controller) {
			err = errors.Join(err, enable(filepath.Dir(group), s.controller), set(group, s.file, s.value))
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set the limits of a cgroup: %w", err), RemoveGroup(home))
	}
	return os.Open(group)
}

func set(group, name, value string) error {
	return os.WriteFile(filepath.Join(group, name), []byte(value), 0)
}

// RemoveGroup removes the cgroup of home, whose processes have ended. One that is not there is
// passed over.
func RemoveGroup(home string) error {
	group := Group(home)
	if err := os.Remove(group); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a cgroup: %w", err)
	}
	_ = os.Remove(filepath.Dir(group)) // in vain while there are others
	return nil
}

// Groups lists the cgroups of homes in dir.
func Groups(dir string) ([]host.Object, error) {
	entries, err := os.ReadDir(groupsOf(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var found []host.Object
	for _, e := range entries {
		if e.IsDir() {
			found = append(found, host.Object{Kind: "cgroup", Name: filepath.Join(groupsOf(dir), e.Name()), Path: e.Name()})
		}
	}
	return found, err
}
