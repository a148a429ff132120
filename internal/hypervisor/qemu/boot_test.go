package qemu

import (
	"testing"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/hypervisortest"
)

func needQEMU(t *testing.T) {
	t.Helper()
	if _, err := host.LookPath(DefaultBinary); err != nil {
		t.Skipf("SKIP: %v; %s", err, errs.HintOf(err))
	}
}

// needKVM skips a test on a host without KVM; the lab has it.
func needKVM(t *testing.T) {
	t.Helper()
	if kvm := host.ProbeKVM("/"); !kvm.Usable {
		t.Skipf("SKIP: no KVM: %s", kvm.Reason)
	}
}

func TestConformance(t *testing.T) { testConformance(t, hypervisor.TCG) }

func TestConformanceKVM(t *testing.T) {
	needKVM(t)
	testConformance(t, hypervisor.KVM)
}

func testConformance(t *testing.T, accel hypervisor.Accel) {
	needQEMU(t)
	kernel, modules := hypervisortest.Bundle(t)
	hypervisortest.Suite{
		New:       func() hypervisor.Hypervisor { return New(DefaultBinary) },
		Accel:     accel,
		UserNet:   true,
		Saves:     true,
		Jails:     true,
		Kernel:    kernel,
		Initramfs: hypervisortest.Initramfs(t, modules),
	}.Run(t)
}
