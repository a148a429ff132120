package daemon

import (
	"context"
	"io"
	"path/filepath"

	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/qemu"
)

// vmm is QEMU as the vm package wants it.
type vmm struct {
	*qemu.Hypervisor
	cache string // directory
}

func newVMM(cache string) *vmm { return &vmm{qemu.New(qemu.DefaultBinary), cache} }

// Accel implements vm.Hypervisor.
func (v *vmm) Accel(ctx context.Context, want, vmlinux string) (hypervisor.Accel, error) {
	if _, err := host.LookPath(qemu.DefaultBinary); err != nil {
		return "", err
	}
	if want != "auto" {
		return hypervisor.Accel(want), nil
	}
	verdict, err := v.Choose(ctx, vmlinux, v.verdicts())
	return verdict.Accel, err
}

// verdicts is the file in which Choose remembers.
func (v *vmm) verdicts() string { return filepath.Join(v.cache, "kvm.json") }

// ReadLog implements vm.Hypervisor.
func (v *vmm) ReadLog(dir string) (io.ReadCloser, error) { return qemu.ReadLog(dir) }
