package firecracker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"banger/internal/errs"
	"banger/internal/hypervisor"
	"banger/internal/jail"
)

const (
	// overheadBytes is what Firecracker may take beyond the guest's memory, and tableShare the part
	// of that memory which page tables may take. A guest of 256 MiB that had used all of it left 3 MiB
	// to Firecracker and 6 to the kernel, 1 of them tables. The rest is for pages of its disk that the
	// kernel has cached: they count too, and are given back first.
	overheadBytes = 128 << 20
	tableShare    = 128 // one table of 4 KiB for each 2 MiB, of the process's and of KVM's, and as much again

	// helpers are threads beside those of the virtual CPUs: the main one, that of the API, and
	// what the kernel starts for KVM. Those of bangerd, which makes the jail, come before.
	helpers = 32

	openFiles = 1024 // a few for each device and CPU, and one for each connection to the guest
)

// jailOf is what the process of a machine is confined to. It begins in the machine's directory, of
// which it has what it needs there.
func jailOf(spec hypervisor.MachineSpec) (jail.Jail, error) {
	j := jail.Jail{Home: spec.Dir, ID: jail.ID(spec.VMID), Work: spec.Dir,
		Files: []jail.File{
			{Path: "/dev/kvm"}, {Path: spec.Kernel}, {Path: spec.Initramfs},
			{Path: filepath.Join(spec.Dir, socketDir), Write: true}, {Path: filepath.Join(spec.Dir, logPipe), Write: true},
			{Path: filepath.Join(spec.Dir, metricsPipe), Write: true},
		},
		Limits: jail.Limits{
			MemoryBytes: spec.MemoryBytes + spec.MemoryBytes/tableShare + overheadBytes, CPUs: spec.CPUs + 1, Processes: spec.CPUs + helpers, OpenFiles: openFiles,
			FileBytes: spec.MemoryBytes, // to which it is saved
		}}
	if len(spec.NICs) > 0 {
		// It opens its TAP by a name, which only the host's network has.
		j.Files = append(j.Files, jail.File{Path: "/dev/net/tun"})
		j.HostNetwork = true
	}
	if spec.From != nil {
		j.Files = append(j.Files, jail.File{Path: spec.From.Memory}, jail.File{Path: spec.From.State})
	}
	for _, d := range spec.Disks {
		info, err := os.Stat(d.Path)
		if err != nil {
			return jail.Jail{}, fmt.Errorf("look at a disk: %w", err)
		}
		if !d.ReadOnly {
			j.Limits.FileBytes = max(j.Limits.FileBytes, info.Size()) // 0 of a device
		}
		j.Files = append(j.Files, jail.File{Path: d.Path, Write: !d.ReadOnly})
	}
	return j, nil
}

// seal takes the directory of the sockets away from a Firecracker that has made them. From then on
// nothing in there changes but by the daemon, which may trust what it finds, whatever a guest
// makes of Firecracker. One that goes on from a state which somebody has prepared for it may have
// put something else in their place by then.
func seal(dir string) error {
	const enter = 0o711
	path := filepath.Join(dir, socketDir)
	if err := errors.Join(os.Chown(path, os.Geteuid(), os.Getegid()), os.Chmod(path, enter)); err != nil {
		return err
	}
	for _, name := range []string{apiSocket, vsockSocket, knockSocket()} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if info.Mode().Type() != os.ModeSocket {
			return errs.New(errs.Internal, "Firecracker has put something in the place of its socket %s", name)
		}
	}
	return nil
}
