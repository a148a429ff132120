package qemu

import (
	"fmt"
	"os"

	"banger/internal/disk/qcow2"
	"banger/internal/hypervisor"
	"banger/internal/jail"
)

// Where QEMU's packages keep what it loads at its start: modules and firmware.
var parts = []string{
	"/usr/lib/x86_64-linux-gnu/qemu", "/usr/lib64/qemu", "/usr/lib/qemu", // of Debian and others
	"/usr/share/qemu", "/usr/share/seabios",
}

const (
	// overheadBytes is what QEMU may take beyond the guest's memory. Under TCG it had 236 MiB
	// after the boot of a Debian with systemd, 128 of them translated code; pages of its disk
	// that the kernel has cached count too, and are given back first.
	overheadBytes = 512 << 20

	// helpers are threads beside those of the virtual CPUs: the main one, of disks, of the
	// clock of RCU, and up to 64 that wait for a disk.
	helpers = 96

	openFiles = 1024 // each connection of QEMU's own network takes one

	// slackBytes is what a disk's file may be longer than the disk: tables of a qcow2 of 1 TiB
	// take 132 MB.
	slackBytes = 256 << 20
)

// jailOf is what the process of a machine is confined to.
func jailOf(spec hypervisor.MachineSpec) (jail.Jail, error) {
	j := jail.Jail{Home: spec.Dir, ID: jail.ID(spec.VMID), Limits: jail.Limits{
		MemoryBytes: spec.MemoryBytes + overheadBytes, CPUs: spec.CPUs + 1, Processes: spec.CPUs + helpers, OpenFiles: openFiles,
		FileBytes: slackBytes, // for its log
	}}
	see := func(path string) { j.Files = append(j.Files, jail.File{Path: path}) }
	seeIfThere := func(path string) {
		if _, err := os.Stat(path); err == nil {
			see(path)
		}
	}
	for _, path := range parts {
		seeIfThere(path)
	}
	see("/dev/null") // with which QEMU finds out how files are locked
	if spec.From != nil {
		see(spec.From.Memory)
	} else {
		see(spec.Kernel)
		see(spec.Initramfs)
	}
	if spec.Accel == hypervisor.KVM {
		see("/dev/kvm")
	}
	for _, n := range spec.NICs {
		if n.Mode == hypervisor.NICUser {
			j.HostNetwork = true
			seeIfThere("/etc/resolv.conf")
		}
	}
	for _, d := range spec.Disks {
		bytes, err := diskBytes(d)
		if err != nil {
			return jail.Jail{}, err
		}
		if !d.ReadOnly {
			j.Limits.FileBytes = max(j.Limits.FileBytes, bytes+slackBytes)
		}
		j.Files = append(j.Files, jail.File{Path: d.Path, Write: !d.ReadOnly})
		for below := d.Backing; below != nil; below = below.Backing {
			see(below.Path)
		}
	}
	return j, nil
}

// diskBytes is the size that the guest sees of a disk in a file, 0 of a device.
func diskBytes(d hypervisor.Disk) (int64, error) {
	if isBlockDevice(d.Path) {
		return 0, nil
	}
	if d.Format == "qcow2" {
		h, err := qcow2.ReadHeader(d.Path)
		return h.VirtualBytes, err
	}
	info, err := os.Stat(d.Path)
	if err != nil {
		return 0, fmt.Errorf("look at a disk: %w", err)
	}
	return info.Size(), nil
}
