package qemu

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/disk"
	"banger/internal/disk/loop"
	"banger/internal/disk/qcow2"
	"banger/internal/errs"
	"banger/internal/hypervisor"
)

// goodSpec is a spec that passes, with files that exist.
func goodSpec(t *testing.T) hypervisor.MachineSpec {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, bytes int) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, make([]byte, bytes), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	base := file("base", 4096)
	overlay, err := qcow2.Driver{}.Clone(t.Context(), disk.Base{Path: base, Bytes: 4096}, disk.Spec{Home: disk.Home{Dir: dir}})
	if err != nil {
		t.Fatal(err)
	}
	return hypervisor.MachineSpec{
		VMID: "3f2a", Dir: dir, Accel: hypervisor.TCG, CPUs: 2, MemoryBytes: 512 << 20,
		Kernel: file("vmlinux", 1), Initramfs: file("initramfs", 1), Cmdline: []string{"banger.root=/dev/vda"},
		Disks: []hypervisor.Disk{
			{Path: overlay.Path, Format: "qcow2", Backing: &hypervisor.Disk{Path: base, Format: "raw"}},
			{Path: file("modules", 512), Format: "raw", ReadOnly: true},
		},
		NICs: []hypervisor.NIC{{Mode: "user", MAC: "52:54:00:12:34:56"}},
	}
}

func TestCheckTakesAGoodSpec(t *testing.T) {
	spec := goodSpec(t)
	if err := check(spec); err != nil {
		t.Error(err)
	}
}

func TestCheckRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		kind   errs.Kind
		change func(*hypervisor.MachineSpec)
	}{
		"no id":               {errs.Invalid, func(s *hypervisor.MachineSpec) { s.VMID = "" }},
		"option in id":        {errs.Invalid, func(s *hypervisor.MachineSpec) { s.VMID = "a,debug-threads=on" }},
		"relative directory":  {errs.Invalid, func(s *hypervisor.MachineSpec) { s.Dir = "vms" }},
		"no acceleration":     {errs.Invalid, func(s *hypervisor.MachineSpec) { s.Accel = "" }},
		"no CPU":              {errs.Invalid, func(s *hypervisor.MachineSpec) { s.CPUs = 0 }},
		"too many CPUs":       {errs.Invalid, func(s *hypervisor.MachineSpec) { s.CPUs = 10000 }},
		"one byte":            {errs.Invalid, func(s *hypervisor.MachineSpec) { s.MemoryBytes = 1 }},
		"half a MiB":          {errs.Invalid, func(s *hypervisor.MachineSpec) { s.MemoryBytes += 512 << 10 }},
		"absurd memory":       {errs.Invalid, func(s *hypervisor.MachineSpec) { s.MemoryBytes = 1 << 60 }},
		"no kernel":           {errs.Unavailable, func(s *hypervisor.MachineSpec) { s.Kernel += ".gone" }},
		"relative kernel":     {errs.Invalid, func(s *hypervisor.MachineSpec) { s.Kernel = "vmlinux" }},
		"directory as kernel": {errs.Invalid, func(s *hypervisor.MachineSpec) { s.Kernel = s.Dir }},
		"no initramfs":        {errs.Unavailable, func(s *hypervisor.MachineSpec) { s.Initramfs += ".gone" }},
		"two arguments in one": {errs.Invalid, func(s *hypervisor.MachineSpec) {
			s.Cmdline = []string{"a init=/bin/sh"}
		}},
		"newline in argument": {errs.Invalid, func(s *hypervisor.MachineSpec) { s.Cmdline = []string{"a\nb"} }},
		"empty argument":      {errs.Invalid, func(s *hypervisor.MachineSpec) { s.Cmdline = []string{""} }},
		"no disk":             {errs.Unavailable, func(s *hypervisor.MachineSpec) { s.Disks[0].Path += ".gone" }},
		"unknown format":      {errs.Invalid, func(s *hypervisor.MachineSpec) { s.Disks[1].Format = "vmdk" }},
		"format to be probed": {errs.Invalid, func(s *hypervisor.MachineSpec) { s.Disks[1].Format = "" }},
		"raw with a base":     {errs.Invalid, func(s *hypervisor.MachineSpec) { s.Disks[1].Backing = s.Disks[0].Backing }},
		"another base":        {errs.Internal, func(s *hypervisor.MachineSpec) { s.Disks[0].Backing.Path = "/etc/shadow" }},
		"no base":             {errs.Invalid, func(s *hypervisor.MachineSpec) { s.Disks[0].Backing = nil }},
		"another format":      {errs.Internal, func(s *hypervisor.MachineSpec) { s.Disks[0].Backing.Format = "qcow2" }},
		"a character device":  {errs.Invalid, func(s *hypervisor.MachineSpec) { s.Disks[1].Path = "/dev/null" }},
		"no qcow2":            {errs.Internal, func(s *hypervisor.MachineSpec) { s.Disks[1].Format, s.Disks[1].Backing = "qcow2", s.Disks[0].Backing }},
		"base is gone":        {errs.Unavailable, func(s *hypervisor.MachineSpec) { os.Remove(s.Disks[0].Backing.Path) }},
		"too many disks":      {errs.Invalid, func(s *hypervisor.MachineSpec) { s.Disks = make([]hypervisor.Disk, 40) }},
		"no address":          {errs.Invalid, func(s *hypervisor.MachineSpec) { s.NICs[0].MAC = "" }},
		"option in address":   {errs.Invalid, func(s *hypervisor.MachineSpec) { s.NICs[0].MAC += ",romfile=/x" }},
		"group address":       {errs.Invalid, func(s *hypervisor.MachineSpec) { s.NICs[0].MAC = "01:00:5e:00:00:01" }},
		"long address":        {errs.Invalid, func(s *hypervisor.MachineSpec) { s.NICs[0].MAC = "02:00:5e:10:00:00:00:01" }},
		"unknown network":     {errs.Invalid, func(s *hypervisor.MachineSpec) { s.NICs[0].Mode = "tap" }},
	} {
		spec := goodSpec(t)
		c.change(&spec)
		if err := check(spec); errs.KindOf(err) != c.kind || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A disk that is a block device is opened as one, whatever it holds.
func TestBlockDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: loop devices need root")
	}
	spec := goodSpec(t)
	var loops loop.Loops
	dev, err := loops.OpenNew(t.Context(), spec.Disks[0].Path, false)
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	defer dev.Close()
	spec.Disks = []hypervisor.Disk{{Path: dev.Path(), Format: "raw"}}
	if err := check(spec); err != nil {
		t.Error(err)
	}
	got := strings.Join(arguments(spec, false), " ")
	if !strings.Contains(got, `"driver":"host_device","filename":"`+dev.Path()+`"`) || !strings.Contains(got, `"driver":"raw"`) {
		t.Errorf("arguments: %s", got)
	}
}

// A disk on a frozen overlay is described to the last file.
func TestChain(t *testing.T) {
	spec := goodSpec(t)
	below := spec.Disks[0]
	base := disk.Base{Path: below.Backing.Path, Bytes: 4096}
	frozen := disk.Base{Path: below.Path, Bytes: 4096, Driver: "qcow2", On: &base}
	v, err := qcow2.Driver{}.Clone(t.Context(), frozen, disk.Spec{Home: disk.Home{Dir: t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	spec.Disks = []hypervisor.Disk{{Path: v.Path, Format: "qcow2", Backing: &below}}
	if err := check(spec); err != nil {
		t.Error(err)
	}
	got := arguments(spec, false)
	for _, want := range []string{
		`{"backing":"disk0-base","discard":"unmap","driver":"qcow2","file":"disk0-file","node-name":"disk0","read-only":false}`,
		`{"backing":"disk0-base-base","discard":"unmap","driver":"qcow2","file":"disk0-base-file","node-name":"disk0-base","read-only":true}`,
		`{"discard":"unmap","driver":"raw","file":"disk0-base-base-file","node-name":"disk0-base-base","read-only":true}`,
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s in %q", want, got)
		}
	}
}

func TestArguments(t *testing.T) {
	spec := goodSpec(t)
	spec.Disks[1].Path = `/odd "name",with\parts`
	got := arguments(spec, true)
	after := func(option, value string) {
		t.Helper()
		for i := range got[:len(got)-1] {
			if got[i] == option && got[i+1] == value {
				return
			}
		}
		t.Errorf("no %s %s in %q", option, value, got)
	}
	after("-name", "banger-3f2a")
	after("-accel", "tcg,thread=multi,tb-size=128")
	after("-cpu", "max,svm=off,erms=off,fsrm=off")
	after("-device", "virtio-serial-pci,max_ports=2")
	after("-smp", "2")
	after("-m", "512M")
	after("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	after("-chardev", "socket,id=monitor,fd=3,server=on,wait=off")
	after("-chardev", "socket,id=channel,fd=5,server=on,wait=off")
	after("-blockdev", `{"discard":"unmap","driver":"raw","file":"disk1-file","node-name":"disk1","read-only":true}`)
	after("-blockdev", `{"discard":"unmap","driver":"file","filename":"/odd \"name\",with\\parts","node-name":"disk1-file","read-only":true}`)
	after("-blockdev", `{"backing":"disk0-base","discard":"unmap","driver":"qcow2","file":"disk0-file","node-name":"disk0","read-only":false}`)
	after("-device", "virtio-blk-pci,iothread=io,werror=stop,drive=disk0")
	after("-device", "virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,romfile=")
	for _, want := range []string{"-nodefaults", "-no-user-config", "-no-reboot"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s", want)
		}
	}
	kernel := got[slices.Index(got, "-append")+1]
	if !strings.HasSuffix(kernel, " banger.root=/dev/vda") || !strings.Contains(kernel, "mitigations=off") || !strings.Contains(kernel, "tsc=reliable") {
		t.Errorf("kernel arguments %q", kernel)
	}
	if strings.Contains(strings.Join(arguments(spec, false), " "), "tsc=") {
		t.Error("the guest trusts a counter that the host does not")
	}

	spec.Accel = hypervisor.KVM
	got = arguments(spec, true)
	after("-accel", "kvm")
	after("-cpu", "host,vmx=off,svm=off")
	if kernel := got[slices.Index(got, "-append")+1]; strings.Contains(kernel, "mitigations") || strings.Contains(kernel, "tsc=") {
		t.Errorf("with KVM the guest has arguments for TCG: %q", kernel)
	}

	spec.Nested = true
	got = arguments(spec, true)
	after("-cpu", "host")
	spec.Accel = hypervisor.TCG
	got = arguments(spec, true)
	after("-cpu", "EPYC,svm=on,erms=off")

	spec.HugePages = true
	spec.Disks[0].Limit = hypervisor.Limit{Bytes: 1 << 20, Requests: 10}
	got = arguments(spec, true)
	after("-object", "memory-backend-memfd,id=pc.ram,size=536870912,hugetlb=on,hugetlbsize=2M")
	after("-machine", "q35,usb=off,vmport=off,sata=off,smbus=off,smm=off,memory-backend=pc.ram")
	after("-object", "throttle-group,id=disk0-limit,x-bps-total=1048576,x-iops-total=10")
	after("-blockdev", "throttle,node-name=disk0-limited,throttle-group=disk0-limit,file=disk0,discard=unmap")
	after("-device", "virtio-blk-pci,iothread=io,werror=stop,drive=disk0-limited")
	after("-device", "virtio-blk-pci,iothread=io,werror=stop,drive=disk1")
}
