package hypervisor

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/errs"
)

const (
	minMemoryBytes = 64 << 20 // Debian's kernel does not get to its init with less
	maxMemoryBytes = 1 << 40
)

// Check refuses what no VMM could make a machine of. errs.Invalid, or errs.Unavailable for
// a file that is not there.
func (s MachineSpec) Check() error {
	invalid := func(format string, a ...any) error { return errs.New(errs.Invalid, format, a...) }
	switch {
	case !plainID(s.VMID):
		return invalid("%q can't be the id of a machine", s.VMID)
	case !filepath.IsAbs(s.Dir):
		return invalid("the machine's directory %q is not absolute", s.Dir)
	case s.CPUs < 1:
		return invalid("a machine has at least one CPU, not %d", s.CPUs)
	case s.MemoryBytes < minMemoryBytes || s.MemoryBytes > maxMemoryBytes:
		return invalid("a machine has %d MiB to %d MiB of memory, not %d bytes", minMemoryBytes>>20, maxMemoryBytes>>20, s.MemoryBytes)
	case s.MemoryBytes%(1<<20) != 0:
		return invalid("the memory of a machine is whole MiB, and %d bytes are not", s.MemoryBytes)
	}
	for _, path := range []string{s.Kernel, s.Initramfs} {
		if err := CheckFile(path); err != nil {
			return err
		}
	}
	for _, arg := range s.Cmdline {
		if arg == "" || strings.ContainsFunc(arg, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return invalid("%q can't be a kernel argument", arg)
		}
	}
	if s.HugePages && s.From != nil {
		return ErrHugePages()
	}
	if s.HugePages {
		if err := CheckHugePages("/", s.MemoryBytes); err != nil {
			return err
		}
	}
	for _, d := range s.Disks {
		if d.Limit.Bytes < 0 || d.Limit.Requests < 0 {
			return invalid("a disk can't be limited to %d bytes and %d requests a second", d.Limit.Bytes, d.Limit.Requests)
		}
	}
	for _, n := range s.NICs {
		if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return invalid("%q is no hardware address of a network device", n.MAC)
		}
	}
	return nil
}

// plainID tells that an id can stand in a VMM's options and in a file name as it is.
func plainID(id string) bool {
	return id != "" && len(id) <= 50 && !strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
	})
}

// CheckFile finds out what a VMM would say less clearly of a regular file that it is to open.
func CheckFile(path string) error {
	if !filepath.IsAbs(path) {
		return errs.New(errs.Invalid, "the path %q is not absolute", path)
	}
	info, err := os.Stat(path)
	if err != nil {
		return errs.New(errs.Unavailable, "a file of the machine can't be read").Because(err)
	}
	if !info.Mode().IsRegular() {
		return errs.New(errs.Invalid, "%s is no regular file", path)
	}
	return nil
}

// CheckSaved finds out the same of what a machine is to go on from.
func CheckSaved(spec MachineSpec) error {
	if err := errors.Join(CheckFile(spec.From.Memory), CheckFile(spec.From.State)); err != nil {
		return err
	}
	info, err := os.Stat(spec.From.Memory)
	if err == nil && info.Size() != spec.MemoryBytes {
		err = errs.New(errs.Invalid, "%s has %d bytes, and the machine %d", spec.From.Memory, info.Size(), spec.MemoryBytes)
	}
	return err
}
