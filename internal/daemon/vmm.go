package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"banger/internal/config"
	"banger/internal/disk/qcow2"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/console"
	"banger/internal/hypervisor/firecracker"
	"banger/internal/hypervisor/proof"
	"banger/internal/hypervisor/qemu"
	"banger/internal/runtimedir"
	"banger/internal/vm"
)

// vmm is the backends as the vm package wants them: as one hypervisor.
type vmm struct {
	backends     map[hypervisor.Backend]backend
	firecrackers *firecracker.Hypervisor
}

// backend is a VMM with the proof that it works with KVM.
type backend struct {
	machines
	kvm *proof.Prover
}

// machines is what each VMM's package offers.
type machines interface {
	hypervisor.Hypervisor
	Remove(ctx context.Context, vmID, dir string, rec *hypervisor.Record) error
}

// newVMM makes the backends. bundle finds the runtime bundle, whose Firecracker comes first.
func newVMM(cache string, own config.Firecracker, bundle func() (runtimedir.Bundle, error)) *vmm {
	findQEMU := func() string { return qemu.DefaultBinary }
	findFirecracker := func() string {
		if b, err := bundle(); err == nil {
			program := b.Program("firecracker/" + firecracker.DefaultBinary)
			if _, err := os.Stat(program); err == nil {
				return program
			}
		}
		return firecracker.DefaultBinary
	}
	v := &vmm{map[hypervisor.Backend]backend{}, firecracker.New(findFirecracker, firecracker.Options(own))}
	add := func(name hypervisor.Backend, find func() string, m machines) {
		v.backends[name] = backend{m, &proof.Prover{Machines: m, Program: find, Cache: filepath.Join(cache, "kvm-"+string(name)+".json")}}
	}
	add(hypervisor.QEMU, findQEMU, qemu.New(qemu.DefaultBinary))
	add(hypervisor.Firecracker, findFirecracker, v.firecrackers)
	return v
}

// of returns the backend of that name. Those of rows and records that name none are QEMU's.
func (v *vmm) of(name hypervisor.Backend) backend {
	if b, ok := v.backends[name]; ok {
		return b
	}
	return v.backends[hypervisor.QEMU]
}

// Launch implements vm.Hypervisor.
func (v *vmm) Launch(ctx context.Context, spec hypervisor.MachineSpec) (hypervisor.Machine, error) {
	return v.of(spec.Backend).Launch(ctx, spec)
}

// Adopt implements vm.Hypervisor.
func (v *vmm) Adopt(ctx context.Context, rec hypervisor.Record) (hypervisor.Machine, error) {
	return v.of(rec.Backend).Adopt(ctx, rec)
}

// Kin implements vm.Hypervisor.
func (v *vmm) Kin(spec hypervisor.MachineSpec) (string, error) {
	return v.of(spec.Backend).Kin(spec)
}

// Remove implements vm.Hypervisor. Without a record each backend looks for a machine of its own.
func (v *vmm) Remove(ctx context.Context, vmID, dir string, rec *hypervisor.Record) error {
	if rec != nil {
		return v.of(rec.Backend).Remove(ctx, vmID, dir, rec)
	}
	var failed []error
	for _, b := range v.backends {
		failed = append(failed, b.Remove(ctx, vmID, dir, nil))
	}
	return errors.Join(failed...)
}

// ReadLog implements vm.Hypervisor.
func (v *vmm) ReadLog(dir string) (io.ReadCloser, error) { return console.ReadLog(dir) }

// Choose implements vm.Hypervisor.
func (v *vmm) Choose(ctx context.Context, spec vm.Spec, vmlinux string) (hypervisor.Backend, hypervisor.Accel, error) {
	if spec.Backend == hypervisor.Firecracker || spec.Backend == vm.AutoBackend {
		err := v.firecracker(ctx, spec, vmlinux)
		if err == nil {
			return hypervisor.Firecracker, hypervisor.KVM, nil
		}
		if spec.Backend == hypervisor.Firecracker || ctx.Err() != nil {
			return "", "", err
		}
	}
	accel, err := v.qemu(ctx, spec, vmlinux)
	return hypervisor.QEMU, accel, err
}

// Doubts implements vm.Hypervisor. Whoever asks for a Firecracker that is passed over may have a kernel that
// it can run.
func (v *vmm) Doubts(ctx context.Context, backend hypervisor.Backend) string {
	if backend != hypervisor.Firecracker {
		return ""
	}
	version, err := v.firecrackers.Version(ctx)
	if err != nil {
		return "" // which whoever starts it is told
	}
	return firecracker.Unfit(version)
}

// firecracker tells why Firecracker can't run a machine of this spec here.
func (v *vmm) firecracker(ctx context.Context, spec vm.Spec, vmlinux string) error {
	cannot := func(what string) error {
		return errs.New(errs.Invalid, "Firecracker %s", what).Try("use --backend qemu, or leave it out")
	}
	switch {
	case spec.Accel == string(hypervisor.TCG):
		return cannot("runs VMs with KVM only")
	case spec.Nested:
		return cannot("runs no VMs that run VMs themselves")
	case spec.Net == vm.NetUser:
		return cannot("has no network of its own, as --net user asks for")
	case spec.DiskDriver == qcow2.Driver{}.Name():
		return cannot("reads no qcow2 disks")
	case spec.CPUs > firecracker.MaxCPUs:
		return cannot(fmt.Sprintf("gives a VM at most %d CPUs", firecracker.MaxCPUs))
	}
	version, err := v.firecrackers.Version(ctx)
	if err != nil {
		return err
	}
	if why := firecracker.Unfit(version); why != "" && spec.Backend == vm.AutoBackend {
		return errs.New(errs.Unavailable, "%s", why)
	}
	if spec.HugePages {
		if err := firecracker.CheckHugePages(version); err != nil {
			return err
		}
	}
	if spec.Accel == string(hypervisor.KVM) {
		return nil // asked for, it is not to be proven
	}
	verdict, err := v.of(hypervisor.Firecracker).kvm.Decide(ctx, vmlinux)
	if err == nil && verdict.Accel != hypervisor.KVM {
		err = errs.New(errs.Unavailable, "Firecracker needs KVM").Because(errors.New(verdict.Reason)).Try("use --backend qemu, or leave it out")
	}
	return err
}

// qemu tells how QEMU runs a machine of this spec here.
func (v *vmm) qemu(ctx context.Context, spec vm.Spec, vmlinux string) (hypervisor.Accel, error) {
	b := v.of(hypervisor.QEMU)
	if _, err := host.LookPath(qemu.DefaultBinary); err != nil {
		return "", err
	}
	accel := hypervisor.Accel(spec.Accel)
	if spec.Accel == "auto" {
		verdict, err := b.kvm.Decide(ctx, vmlinux)
		if err != nil {
			return "", err
		}
		accel = verdict.Accel
	}
	if spec.Nested && accel == hypervisor.KVM {
		return accel, checkNesting(host.ProbeKVM("/"))
	}
	return accel, nil
}

// doubt forgets all proofs of KVM that have failed.
func (v *vmm) doubt() error {
	var failed []error
	for _, b := range v.backends {
		failed = append(failed, b.kvm.Doubt())
	}
	return errors.Join(failed...)
}

// noKVM tells why QEMU does not use KVM.
func (v *vmm) noKVM(ctx context.Context, vmlinux string) string {
	verdict, err := v.of(hypervisor.QEMU).kvm.Decide(ctx, vmlinux)
	if err != nil {
		return err.Error()
	}
	return verdict.Reason
}

// checkNesting refuses a KVM that keeps virtualization from its guests. One that can't be
// used at all QEMU refuses.
func checkNesting(kvm host.KVM) error {
	if !kvm.Usable || kvm.Nested {
		return nil
	}
	return errs.New(errs.Unavailable, "a VM can't run VMs itself with this host's KVM").
		Because(fmt.Errorf("the module %s is loaded with nested off", kvm.Module)).
		Try("load it anew with it on (modprobe -r %[1]s && modprobe %[1]s nested=1), or use --accel tcg", kvm.Module)
}
