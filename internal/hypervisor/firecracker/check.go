package firecracker

import (
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"banger/internal/errs"
	"banger/internal/hypervisor"
)

const (
	MaxCPUs    = 32
	maxDevices = 11 // interrupts of the machine, less those of its own devices

	// maxArguments is what Firecracker takes of kernel arguments, in bytes, less what it adds
	// for each device.
	maxArguments = 1500
)

// check refuses what Firecracker can't do, or would refuse in words for its developers.
func check(spec hypervisor.MachineSpec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	invalid := func(format string, a ...any) *errs.Error { return errs.New(errs.Invalid, format, a...) }
	switch {
	case spec.Accel != hypervisor.KVM:
		return invalid("Firecracker runs machines with KVM only, not with %q", spec.Accel).Try("use --backend qemu")
	case spec.Nested:
		return invalid("a machine of Firecracker's can't run machines itself").Try("use --backend qemu")
	case spec.CPUs > MaxCPUs:
		return invalid("a machine of Firecracker's has 1 to %d CPUs, not %d", MaxCPUs, spec.CPUs).Try("use --backend qemu for more")
	case len(spec.Disks)+len(spec.NICs) > maxDevices:
		return invalid("a machine of Firecracker's has at most %d disks and network devices", maxDevices)
	case len(strings.Join(spec.Cmdline, " ")) > maxArguments:
		return invalid("the kernel's arguments have more than %d bytes", maxArguments)
	}
	paths := []string{spec.Kernel, spec.Initramfs}
	for _, d := range spec.Disks {
		if d.Format != "raw" {
			return invalid("Firecracker reads raw disks only, and %s is %s", d.Path, d.Format).Try("use --disk-driver auto, or --backend qemu")
		}
		if _, err := os.Stat(d.Path); err != nil {
			return errs.New(errs.Unavailable, "a disk of the machine is not there").Because(err)
		}
		paths = append(paths, d.Path)
	}
	for _, path := range paths {
		if !utf8.ValidString(path) { // JSON has text only
			return invalid("Firecracker can't be told of the file %q, whose name is no text", path)
		}
	}
	for _, n := range spec.NICs {
		if n.Mode != hypervisor.NICTAP || n.TAPName == "" {
			return invalid("Firecracker's network devices are TAPs, and %s is none", n.MAC).Try("use --net bridge or none, or --backend qemu")
		}
	}
	if spec.From != nil {
		return hypervisor.CheckSaved(spec)
	}
	return nil
}

// printable leaves out of a text what could steer a terminal: some of it is a guest's.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != utf8.RuneError {
			return r
		}
		return ' '
	}, s)
}
