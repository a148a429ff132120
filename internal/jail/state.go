package jail

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"banger/internal/host"
)

// State is how a process is confined, as the kernel has it.
type State struct {
	UID, GID     int
	Capabilities uint64   // those in effect, a bit each
	NoNewPrivs   bool     // no program gives it any
	Seccomp      bool     // its system calls are filtered
	Namespaces   []string // those that it does not share with this process: mnt, net, ipc
	Limits       Limits   // -1 is what has none
}

// Has tells whether the process has a namespace of this kind to itself.
func (s State) Has(kind string) bool { return slices.Contains(s.Namespaces, kind) }

// Look tells how a process is confined. errs.NotFound if it has ended.
func Look(p host.Process) (State, error) {
	proc := filepath.Join("/proc", strconv.Itoa(p.PID))
	var s State
	for _, look := range []func(proc string) error{s.readStatus, s.readNamespaces, s.readLimits, s.readGroup} {
		if err := look(proc); err != nil {
			return State{}, fmt.Errorf("look how process %d is confined: %w", p.PID, err)
		}
	}
	// What was read is that process's if it still is the one.
	h, err := p.Open()
	if err != nil {
		return State{}, err
	}
	return s, h.Close()
}

func (s *State) readStatus(proc string) error {
	text, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return err
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	// The second of four ids is the one in effect.
	const effective = 1
	if ids := strings.Fields(fields["Uid"]); len(ids) > effective {
		s.UID, err = strconv.Atoi(ids[effective])
	}
	if ids := strings.Fields(fields["Gid"]); err == nil && len(ids) > effective {
		s.GID, err = strconv.Atoi(ids[effective])
	}
	if err == nil {
		s.Capabilities, err = strconv.ParseUint(fields["CapEff"], 16, 64)
	}
	s.NoNewPrivs, s.Seccomp = fields["NoNewPrivs"] == "1", fields["Seccomp"] == "2"
	return err
}

func (s *State) readNamespaces(proc string) error {
	for _, kind := range []string{"mnt", "net", "ipc"} {
		its, err := os.Readlink(filepath.Join(proc, "ns", kind))
		if err != nil {
			return err
		}
		ours, err := os.Readlink(filepath.Join("/proc/self/ns", kind))
		if err != nil {
			return err
		}
		if its != ours {
			s.Namespaces = append(s.Namespaces, kind)
		}
	}
	return nil
}

func (s *State) readLimits(proc string) error {
	text, err := os.ReadFile(filepath.Join(proc, "limits"))
	if err != nil {
		return err
	}
	s.Limits = Limits{MemoryBytes: -1, CPUs: -1, Processes: -1, FileBytes: -1, OpenFiles: -1}
	for line := range strings.Lines(string(text)) {
		for name, to := range map[string]func(int64){
			"Max file size":  func(n int64) { s.Limits.FileBytes = n },
			"Max open files": func(n int64) { s.Limits.OpenFiles = int(n) },
			"Max processes":  func(n int64) { s.Limits.Processes = int(n) },
		} {
			rest, found := strings.CutPrefix(line, name)
			if words := strings.Fields(rest); found && len(words) > 0 {
				if n, err := strconv.ParseInt(words[0], 10, 64); err == nil { // else "unlimited"
					to(n)
				}
			}
		}
	}
	return nil
}

// readGroup reads the limits of the process's cgroup, as far as it has any.
func (s *State) readGroup(proc string) error {
	text, err := os.ReadFile(filepath.Join(proc, "cgroup"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		path, found := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !found {
			continue
		}
		number := func(name string) (int64, bool) {
			value, _ := os.ReadFile(filepath.Join(groupRoot, path, name)) // what can't be read is no limit
			word, _, _ := strings.Cut(strings.TrimSpace(string(value)), " ")
			n, err := strconv.ParseInt(word, 10, 64) // else "max"
			return n, err == nil
		}
		if n, limited := number("memory.max"); limited {
			s.Limits.MemoryBytes = n
		}
		if n, limited := number("pids.max"); limited {
			s.Limits.Processes = int(n)
		}
		if n, limited := number("cpu.max"); limited {
			s.Limits.CPUs = int(n / period)
		}
	}
	return nil
}
