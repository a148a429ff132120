package host

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Object is something that exists on the host beside plain files and is tied to a directory:
// it would stay if that were removed.
type Object struct {
	Kind    string  // process, socket, mount, loop or dm
	Name    string  // of the object: a pid, a path, a device
	Path    string  // where below the directory it is tied
	Process Process // of a process
}

// Objects looks for all that is tied to the directories in dir: processes that [Detach] started in
// one and that have banger- and its name in their command line, sockets and mounts in them, loop devices
// backed by files there and device-mapper targets on those. What goes meanwhile is passed over.
func Objects(dir string) ([]Object, error) {
	var all []Object
	for _, look := range []func(string) ([]Object, error){ProcessesIn, socketsIn, mountsIn, blockDevicesOn} {
		found, err := look(dir)
		if err != nil {
			return nil, fmt.Errorf("look for what is left in %s: %w", dir, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

// below returns what follows dir in path, and whether path lies in dir. Linux marks the
// names of what has been removed.
func below(dir, path string) (string, bool) {
	rest, ok := strings.CutPrefix(strings.TrimSuffix(path, " (deleted)"), dir)
	return strings.TrimPrefix(rest, "/"), ok && strings.HasPrefix(rest, "/")
}

// FirstUID is the first of the uids, which go on to 0x7fffffff, that processes started by root are
// confined to. No system hands them out: below them lie those of containers, and above, programs err
// that take them for signed.
const FirstUID = 0x70000000

// ours tells whether the user who started a process is this one, or one that it confines processes
// to. Others can give a process any environment and name that they like.
func ours(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	_, line, _ := bytes.Cut(status, []byte("\nUid:"))
	uid := -1
	fmt.Sscan(string(line), &uid) // the real one: a setuid program's other ids are not its user's
	return uid == os.Getuid() || os.Getuid() == 0 && uid >= FirstUID
}

// ProcessesIn is the part of [Objects] that looks for processes.
func ProcessesIn(dir string) ([]Object, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []Object
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		proc := filepath.Join("/proc", e.Name())
		environ, err := os.ReadFile(filepath.Join(proc, "environ"))
		if err != nil {
			continue // it has ended, or is another user's
		}
		rest, inside := below(dir, variable(environ, envDir))
		args, err := os.ReadFile(filepath.Join(proc, "cmdline"))
		// What a machine might start would inherit that; a machine also bears the VM's name.
		name, _, _ := strings.Cut(rest, "/")
		if !inside || err != nil || !bytes.Contains(args, []byte("banger-"+name)) || !ours(pid) {
			continue
		}
		p, err := Identify(pid)
		if err != nil {
			continue
		}
		found = append(found, Object{Kind: "process", Name: e.Name(), Path: rest, Process: p})
	}
	return found, nil
}

// variable returns the value of an environment variable, "" if there is none.
func variable(environ []byte, name string) string {
	for word := range bytes.SplitSeq(environ, []byte{0}) {
		if value, found := bytes.CutPrefix(word, []byte(name+"=")); found {
			return string(value)
		}
	}
	return ""
}

func socketsIn(dir string) ([]Object, error) {
	var found []Object
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeSocket != 0 {
			rest, _ := below(dir, path)
			found = append(found, Object{Kind: "socket", Name: path, Path: rest})
		}
		return nil
	})
	return found, err
}

func mountsIn(dir string) ([]Object, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []Object
	for line := range bytes.Lines(table) {
		if f := strings.Fields(string(line)); len(f) > 4 {
			point := unescape(f[4])
			if rest, ok := below(dir, point); ok {
				found = append(found, Object{Kind: "mount", Name: point, Path: rest})
			}
		}
	}
	return found, nil
}

// unescape undoes the octal escapes (\040 for a space) of the tables in /proc.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// blockDevicesOn finds loop devices whose file lies in dir, and the device-mapper targets
// that stand on one of them.
func blockDevicesOn(dir string) ([]Object, error) {
	const sys = "/sys/block"
	entries, err := os.ReadDir(sys)
	if err != nil {
		return nil, err
	}
	var found []Object
	tied := map[string]string{} // loop device → path below dir
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(sys, e.Name(), "loop", "backing_file"))
		if err != nil {
			continue // no loop device, or one that is free
		}
		if rest, ok := below(dir, strings.TrimSuffix(string(b), "\n")); ok {
			tied[e.Name()] = rest
			found = append(found, Object{Kind: "loop", Name: "/dev/" + e.Name(), Path: rest})
		}
	}
	for _, e := range entries {
		name, err := os.ReadFile(filepath.Join(sys, e.Name(), "dm", "name"))
		if err != nil {
			continue
		}
		slaves, err := os.ReadDir(filepath.Join(sys, e.Name(), "slaves"))
		if err != nil {
			continue
		}
		for _, s := range slaves {
			if rest, ok := tied[s.Name()]; ok {
				found = append(found, Object{Kind: "dm", Name: strings.TrimSpace(string(name)), Path: rest})
				break
			}
		}
	}
	return found, nil
}
