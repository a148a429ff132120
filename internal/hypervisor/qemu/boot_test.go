package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

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
		Kernel:    kernel,
		Initramfs: hypervisortest.Initramfs(t, modules),
	}.Run(t)
}

// TestProveBoots checks the proof itself, with the acceleration that works everywhere, and
// that it ends the machine of a proof that a dead daemon has left.
func TestProveBoots(t *testing.T) {
	needQEMU(t)
	kernel, _ := hypervisortest.Bundle(t)
	dir := filepath.Join(t.TempDir(), "proof")
	left := leaveProof(t, dir)
	if err := New(DefaultBinary).Prove(t.Context(), hypervisor.TCG, kernel, dir); err != nil {
		t.Error(err)
	}
	if _, err := left.Open(); errs.KindOf(err) != errs.NotFound {
		t.Errorf("the machine of an earlier proof is still there: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

// TestChooseKVM has the real KVM proven; the second answer is remembered, for nothing can
// be proven in no time.
func TestChooseKVM(t *testing.T) {
	needQEMU(t)
	needKVM(t)
	kernel, _ := hypervisortest.Bundle(t)
	cache := filepath.Join(t.TempDir(), "kvm.json")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 2 {
		if v, err := New(DefaultBinary).Choose(ctx, kernel, cache); err != nil || v != (Verdict{Accel: hypervisor.KVM}) {
			t.Errorf("got %+v, %v", v, err)
		}
		cancel()
	}
}

// leaveProof makes what a daemon that dies during a proof leaves, with another program in
// the place of QEMU.
func leaveProof(t *testing.T, dir string) host.Process {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, qemuLog))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	child, err := host.Detach(host.Detached{Path: "sleep", Args: []string{"1000"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = child.Handle().Signal(unix.SIGKILL)
		<-child.Done()
		child.Close()
	})
	b, err := json.Marshal(hypervisor.Record{Process: child.Process, Dir: dir, VMID: "proof"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, proofRecord), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return child.Process
}
