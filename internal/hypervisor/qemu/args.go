package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/disk/qcow2"
	"banger/internal/errs"
	"banger/internal/hypervisor"
)

const (
	maxCPUs    = 255 // what q35 takes without an IOMMU
	maxDevices = 24  // slots of q35's root bus, less those of the machine itself

	// firstFD is the number under which QEMU finds the first file it is given; they are
	// those of socketNames, in order, and then TAPs.
	firstFD = 3
)

// arguments gives QEMU's command line for a spec that has been checked. steadyTSC is what
// host.SteadyTSC says.
//
// Measured with 2 vCPUs, 512 MiB, TCG, Debian's 6.1 cloud kernel and a trivial init, from
// exec to its first byte on the channel, medians of 5 on two cores that had other work too:
// pc 3.4 s, q35 2.75 s, q35 with the kernel arguments below 1.9 to 2.1 s. pc gets as fast
// as q35 once its devices lose their legacy registers and its bus its 30 hotplug slots.
// microvm is no faster and does not boot every time under TCG. With KVM it is the same
// machine: what is tested is what runs. No difference beyond noise: -cpu max or smaller
// models, tsc=reliable, nokaslr, noreplace-smp, rcupdate.rcu_expedited, i8042 off, other
// firmware.
func arguments(spec hypervisor.MachineSpec, steadyTSC bool) []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-name", machineName(spec.VMID),
		"-machine", "q35,usb=off,vmport=off,sata=off,smbus=off,smm=off" + memoryBackend(spec),
		"-accel", accelerator(spec.Accel),
		"-cpu", cpuModel(spec.Accel, spec.Nested),
		"-smp", strconv.Itoa(spec.CPUs),
		"-m", fmt.Sprintf("%dM", spec.MemoryBytes>>20),
		"-no-reboot",
		// QEMU itself can neither start a program nor gain a privilege once it runs.
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
	if spec.HugePages {
		args = append(args, "-object", fmt.Sprintf("memory-backend-memfd,id=%s,size=%d,hugetlb=on,hugetlbsize=2M", ramBlock, spec.MemoryBytes))
	}
	if spec.From == nil {
		args = append(args, "-kernel", spec.Kernel, "-initrd", spec.Initramfs,
			"-append", strings.Join(append(kernelArguments(spec.Accel, steadyTSC), spec.Cmdline...), " "))
	} else { // its kernel is in its memory by now, and QEMU would read those of some 40 MB for nothing
		args = append(args, "-object", savedMemory(spec), "-incoming", "defer", "-S")
	}
	for i, id := range []string{"monitor", "console", "channel"} {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", id, firstFD+i))
	}
	args = append(args,
		"-mon", "chardev=monitor,mode=control",
		"-serial", "chardev:console",
		// One port for the channel and one that QEMU reserves: QEMU's main loop polls every
		// queue each time round, and the default is 31 ports.
		"-device", "virtio-serial-pci,max_ports=2",
		"-device", "virtserialport,chardev=channel,name=banger",
		"-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng",
		// Tells a kernel that goes on from a saved state that it does, so that it takes fresh
		// random numbers before it runs any program.
		"-device", "vmgenid,guid=auto",
		// Disks have a thread of their own, for the main one moves the channel's bytes.
		"-object", "iothread,id=io",
	)
	for i, d := range spec.Disks {
		args = append(args, diskArguments(i, d)...)
	}
	for i, n := range spec.NICs {
		backend := "user,ipv6=off"
		if n.Mode == hypervisor.NICTAP {
			backend = fmt.Sprintf("tap,fd=%d", tapFD(spec, i))
		}
		args = append(args,
			"-netdev", fmt.Sprintf("%s,id=%s", backend, netdev(i)),
			// The option ROM is for booting from the network.
			"-device", fmt.Sprintf("virtio-net-pci,netdev=%s,mac=%s,romfile=", netdev(i), n.MAC))
	}
	return args
}

// netdev is QEMU's name for what the network device of this number is connected to.
func netdev(i int) string { return fmt.Sprintf("net%d", i) }

// tapFD is the number under which QEMU finds the TAP of a network device: TAPs come behind
// the sockets, in order.
func tapFD(spec hypervisor.MachineSpec, nic int) int {
	fd := firstFD + numSockets
	for _, n := range spec.NICs[:nic] {
		if n.Mode == hypervisor.NICTAP {
			fd++
		}
	}
	return fd
}

// machineName is what a machine answers when its monitor is asked for its name.
func machineName(vmID string) string { return "banger-" + vmID }

// accelerator gives the option for how guest code is run. Left alone, TCG keeps up to 1 GiB
// of translated code, on top of the guest's memory: after the boot of a Debian with systemd
// in 512 MiB the process had 640 MB; with 256, 128 and 64 MiB for it 540, 405 and 340. Down
// to 128 that cost no CPU time (20 s), with 64 it took 24.
func accelerator(accel hypervisor.Accel) string {
	if accel == hypervisor.KVM {
		return "kvm"
	}
	return "tcg,thread=multi,tb-size=128"
}

// cpuModel gives the CPU. Left alone, both max and host show what virtualization the
// accelerator has; a guest that need not run machines of its own does not see it. One that
// does gets under TCG the only kind that TCG knows, on a CPU that hypervisors know from real
// hosts: max is of no real family. Machines in it are as fast with either.
//
// TCG carries out "rep movsb" byte by byte, and the guest's kernel copies and clears memory
// with it where the CPU says that it is fast: without that claim it takes eight bytes at a
// time. It halved the time of a copy out of a VM.
func cpuModel(accel hypervisor.Accel, nested bool) string {
	switch {
	case accel == hypervisor.KVM && nested:
		return "host"
	case accel == hypervisor.KVM:
		return "host,vmx=off,svm=off"
	case nested:
		return "EPYC,svm=on,erms=off"
	default:
		return "max,svm=off,erms=off,fsrm=off"
	}
}

// kernelArguments are those that the machine itself needs.
func kernelArguments(accel hypervisor.Accel, steadyTSC bool) []string {
	args := []string{
		"console=ttyS0", "8250.nr_uarts=1", "quiet",
		// A panic and a restart both end the process, by -no-reboot. A triple fault needs no
		// device that the machine might lack.
		"panic=-1", "reboot=t",
		"cryptomgr.notests", // self-tests of ciphers: a fifth of the boot under TCG
	}
	if accel == hypervisor.TCG {
		// The timer check counts on interrupts arriving within a time that a busy host can't
		// keep, and panics. Mitigations guard a CPU that is not there.
		args = append(args, "no_timer_check", "mitigations=off")
		if steadyTSC {
			// Else the kernel, on a CPU that does not call itself Intel's, takes the HPET: a
			// system call and an exit to QEMU for each look at the clock. QEMU's counter is the
			// host's. It made copies into a VM 1.3 times as fast.
			args = append(args, "tsc=reliable")
		}
	}
	return args
}

// diskArguments describes a disk in JSON, in which a path needs no escaping. Flushes of
// the guest reach the host's disk (the default, cache.no-flush=off), and what it discards
// is given back. If a write fails, on a full host say, the machine stops before the guest
// learns of it, and tries again when it goes on.
func diskArguments(i int, d hypervisor.Disk) []string {
	top := fmt.Sprintf("disk%d", i)
	var args []string
	for _, n := range blockNodes(top, d) {
		b, err := json.Marshal(n)
		if err != nil {
			panic(err) // strings and booleans only
		}
		args = append(args, "-blockdev", string(b))
	}
	if d.Limit != (hypervisor.Limit{}) {
		args = append(args, limitArguments(top, d.Limit)...)
		top += "-limited"
	}
	return append(args, "-device", "virtio-blk-pci,iothread=io,werror=stop,drive="+top)
}

// limitArguments lay a node that holds up what is more than the limit on a disk's. Each node lets
// through what is discarded only if it is told to.
func limitArguments(disk string, l hypervisor.Limit) []string {
	group := disk + "-limit"
	return []string{
		"-object", fmt.Sprintf("throttle-group,id=%s,x-bps-total=%d,x-iops-total=%d", group, l.Bytes, l.Requests),
		"-blockdev", fmt.Sprintf("throttle,node-name=%s-limited,throttle-group=%s,file=%s,discard=unmap", disk, group, disk),
	}
}

// blockNodes describes a disk and what lies below it, the lowest first. Given that, QEMU
// does not look at the names in headers.
func blockNodes(name string, d hypervisor.Disk) (nodes []map[string]any) {
	format := map[string]any{"node-name": name, "driver": d.Format, "file": name + "-file", "read-only": d.ReadOnly, "discard": "unmap"}
	if d.Backing != nil {
		below := *d.Backing
		below.ReadOnly = true
		nodes = blockNodes(name+"-base", below)
		format["backing"] = name + "-base"
	}
	driver := "file"
	if isBlockDevice(d.Path) {
		driver = "host_device"
	}
	return append(nodes, map[string]any{"node-name": name + "-file", "driver": driver, "filename": d.Path,
		"read-only": d.ReadOnly, "discard": "unmap"}, format)
}

func isBlockDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice
}

// check refuses what QEMU would refuse in words for its developers, or misread.
func check(spec hypervisor.MachineSpec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	invalid := func(format string, a ...any) error { return errs.New(errs.Invalid, format, a...) }
	switch {
	case spec.Accel != hypervisor.KVM && spec.Accel != hypervisor.TCG:
		return invalid("QEMU has no acceleration %q here; there are kvm and tcg", spec.Accel)
	case spec.CPUs > maxCPUs:
		return invalid("a machine has 1 to %d CPUs, not %d", maxCPUs, spec.CPUs)
	case len(spec.Disks)+len(spec.NICs) > maxDevices:
		return invalid("a machine has at most %d disks and network devices", maxDevices)
	}
	for _, d := range spec.Disks {
		if err := checkDisk(d); err != nil {
			return err
		}
	}
	for _, n := range spec.NICs {
		if n.Mode != hypervisor.NICUser && n.Mode != hypervisor.NICTAP {
			return invalid("QEMU has no network mode %q here", n.Mode)
		}
		if (n.Mode == hypervisor.NICTAP) != (n.TAP != nil) {
			return invalid("the network device %s has no TAP, or one that it can't use", n.MAC)
		}
	}
	if spec.From != nil {
		return hypervisor.CheckSaved(spec)
	}
	return nil
}

// maxDepth bounds how many files lie on each other in a disk.
const maxDepth = 8

// checkDisk looks at a disk before QEMU opens it. An overlay is read with suspicion: the
// guest's last VMM could write it, and a header can name any file of the host.
func checkDisk(d hypervisor.Disk) error {
	for depth := 0; ; depth++ {
		if !isBlockDevice(d.Path) || !filepath.IsAbs(d.Path) {
			if err := hypervisor.CheckFile(d.Path); err != nil {
				return err
			}
		}
		switch {
		case d.Format == "raw" && d.Backing == nil:
			return nil
		case d.Format != "qcow2" || d.Backing == nil || depth == maxDepth:
			return errs.New(errs.Invalid, "the disk %s has the format %q with base %+v, which is not to be had", d.Path, d.Format, d.Backing)
		}
		h, err := qcow2.ReadHeader(d.Path)
		if err != nil {
			return errs.New(errs.Internal, "the disk %s is damaged", d.Path).Because(err)
		}
		if h.Backing != d.Backing.Path || h.BackingFormat != d.Backing.Format {
			return errs.New(errs.Internal, "the disk %s lies on %s (%s), not on %s (%s) as it should",
				d.Path, h.Backing, h.BackingFormat, d.Backing.Path, d.Backing.Format)
		}
		d = *d.Backing
	}
}
