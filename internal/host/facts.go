package host

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// KVM says whether KVM looks usable, and why not.
type KVM struct {
	Usable bool
	Reason string // a sentence fragment if not usable: "the CPU has neither vmx nor svm"
	Module string // if usable: the kernel's, kvm_intel or kvm_amd
	Nested bool   // if usable: its guests can be given virtualization in turn
}

// ProbeKVM looks for KVM under root ("/" but in tests). A node that opens proves little:
// modules exist that offer /dev/kvm without the CPU's own virtualization, and no stock
// kernel boots on those. What this finds usable is still to be confirmed by a boot.
func ProbeKVM(root string) KVM {
	info, err := os.ReadFile(filepath.Join(root, "proc/cpuinfo"))
	if err != nil {
		return KVM{Reason: err.Error()}
	}
	module := ""
	switch {
	case hasCPUFlag(info, "vmx"):
		module = "kvm_intel"
	case hasCPUFlag(info, "svm"):
		module = "kvm_amd"
	default:
		return KVM{Reason: "the CPU shows neither vmx nor svm: it has no virtualization, or its firmware or hypervisor hides it"}
	}
	// A module built into the kernel has a directory here too: both have parameters.
	if _, err := os.Stat(filepath.Join(root, "sys/module", module)); err != nil {
		return KVM{Reason: "the kernel module " + module + " is not loaded"}
	}
	f, err := os.OpenFile(filepath.Join(root, "dev/kvm"), os.O_RDWR, 0)
	if err != nil {
		return KVM{Reason: fmt.Sprintf("/dev/kvm can't be opened: %v", err.(*fs.PathError).Err)}
	}
	f.Close()
	// "Y" of kvm_intel, "1" of kvm_amd; a module that has no such parameter can't do it.
	nested, _ := os.ReadFile(filepath.Join(root, "sys/module", module, "parameters/nested"))
	value := strings.TrimSpace(string(nested))
	return KVM{Usable: true, Module: module, Nested: value == "Y" || value == "1"}
}

// SteadyTSC tells whether the time-stamp counters of the CPU go on at one rate in every
// state of its power management. root is "/" but in tests.
func SteadyTSC(root string) bool {
	info, err := os.ReadFile(filepath.Join(root, "proc/cpuinfo"))
	return err == nil && hasCPUFlag(info, "constant_tsc") && hasCPUFlag(info, "nonstop_tsc")
}

// hasCPUFlag looks for a word in the "flags" lines of /proc/cpuinfo.
func hasCPUFlag(cpuinfo []byte, flag string) bool {
	for line := range bytes.Lines(cpuinfo) {
		name, value, ok := strings.Cut(string(line), ":")
		if ok && strings.TrimSpace(name) == "flags" {
			return slices.Contains(strings.Fields(value), flag)
		}
	}
	return false
}

// CPUModel tells what CPU the host has, in the lines of /proc/cpuinfo that say which
// instructions it knows. root is "/" but in tests.
func CPUModel(root string) (string, error) {
	info, err := os.ReadFile(filepath.Join(root, "proc/cpuinfo"))
	if err != nil {
		return "", err
	}
	var model strings.Builder
	for line := range strings.Lines(string(info)) {
		name, _, ok := strings.Cut(line, ":")
		switch {
		case !ok: // the end of what it says of the first CPU
			return model.String(), nil
		case slices.Contains([]string{"vendor_id", "cpu family", "model", "stepping", "flags"}, strings.TrimSpace(name)):
			model.WriteString(line)
		}
	}
	return model.String(), nil
}

// CPUs is the number of CPUs that this process may run on.
func CPUs() int { return runtime.NumCPU() }

// MemoryBytes is the host's memory in bytes.
func MemoryBytes() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("sysinfo: %w", err)
	}
	return int64(info.Totalram) * int64(info.Unit), nil
}

// AvailableBytes is how much of the host's memory programs can have now, as the kernel reckons,
// in bytes. root is "/" but in tests.
func AvailableBytes(root string) (int64, error) {
	path := filepath.Join(root, "proc/meminfo")
	info, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s does not tell how much memory is available", path)
}

// FreeBytes is what the filesystem of path has left for unprivileged users, in bytes.
func FreeBytes(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}
