package daemon

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/qemu"
	"banger/internal/vm"
)

// vmm is QEMU as the vm package wants it.
type vmm struct {
	*qemu.Hypervisor
	cache string // directory
}

func newVMM(cache string) *vmm { return &vmm{qemu.New(qemu.DefaultBinary), cache} }

// Accel implements vm.Hypervisor.
func (v *vmm) Accel(ctx context.Context, spec vm.Spec, vmlinux string) (hypervisor.Accel, error) {
	if _, err := host.LookPath(qemu.DefaultBinary); err != nil {
		return "", err
	}
	accel := hypervisor.Accel(spec.Accel)
	if spec.Accel == "auto" {
		verdict, err := v.Choose(ctx, vmlinux, v.verdicts())
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

// verdicts is the file in which Choose remembers.
func (v *vmm) verdicts() string { return filepath.Join(v.cache, "kvm.json") }

// ReadLog implements vm.Hypervisor.
func (v *vmm) ReadLog(dir string) (io.ReadCloser, error) { return qemu.ReadLog(dir) }
