package proof_test

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
	"banger/internal/hypervisor/firecracker"
	"banger/internal/hypervisor/hypervisortest"
	"banger/internal/hypervisor/proof"
	"banger/internal/hypervisor/qemu"
)

func need(t *testing.T, program string) {
	t.Helper()
	if _, err := host.LookPath(program); err != nil {
		t.Skipf("SKIP: %v; %s", err, errs.HintOf(err))
	}
}

// TestBoot checks the boot itself, with the acceleration that works everywhere, and that it
// ends the machine of a proof that a dead daemon has left.
func TestBoot(t *testing.T) {
	need(t, qemu.DefaultBinary)
	kernel, _ := hypervisortest.Bundle(t)
	dir := filepath.Join(t.TempDir(), "proof")
	left := leaveProof(t, dir)
	if err := proof.Boot(t.Context(), qemu.New(qemu.DefaultBinary), hypervisor.TCG, kernel, dir); err != nil {
		t.Error(err)
	}
	if _, err := left.Open(); errs.KindOf(err) != errs.NotFound {
		t.Errorf("the machine of an earlier proof is still there: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

// TestDecideKVM has the real KVM proven by each VMM; the second answer is remembered, for
// nothing can be proven in no time.
func TestDecideKVM(t *testing.T) {
	if kvm := host.ProbeKVM("/"); !kvm.Usable {
		t.Skipf("SKIP: no KVM: %s", kvm.Reason)
	}
	for program, h := range map[string]hypervisor.Hypervisor{
		qemu.DefaultBinary: qemu.New(qemu.DefaultBinary), firecracker.DefaultBinary: firecracker.New(func() string { return firecracker.DefaultBinary }, firecracker.Options{}),
	} {
		t.Run(program, func(t *testing.T) {
			need(t, program)
			kernel, _ := hypervisortest.Bundle(t)
			p := &proof.Prover{Machines: h, Program: func() string { return program }, Cache: filepath.Join(t.TempDir(), "kvm.json")}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for range 2 {
				if v, err := p.Decide(ctx, kernel); err != nil || v != (proof.Verdict{Accel: hypervisor.KVM}) {
					t.Errorf("got %+v, %v", v, err)
				}
				cancel()
			}
		})
	}
}

// leaveProof makes what a daemon that dies during a proof leaves, with another program in
// the place of a VMM.
func leaveProof(t *testing.T, dir string) host.Process {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "vmm.log"))
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
	if err := os.WriteFile(filepath.Join(dir, "record.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return child.Process
}
