package qemu

import (
	"os"
	"path/filepath"
	"testing"

	"banger/internal/errs"
	"banger/internal/hypervisor/hypervisortest"
)

// A machine without a record is gone when Remove returns, not just about to be.
func TestRemoveWaitsForTheEnd(t *testing.T) {
	needQEMU(t)
	kernel, _ := hypervisortest.Bundle(t)
	h := New(DefaultBinary)
	for range 5 {
		spec := goodSpec(t)
		spec.VMID, spec.Dir = "0123456789ab", filepath.Join(t.TempDir(), "0123456789ab")
		spec.Kernel = kernel
		if err := os.Mkdir(spec.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		m, err := h.Launch(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		process := m.Record().Process
		m.Close() // as a daemon does that dies
		if err := h.Remove(t.Context(), spec.VMID, spec.Dir, nil); err != nil {
			t.Fatal(err)
		}
		if left, err := process.Open(); errs.KindOf(err) != errs.NotFound {
			t.Errorf("it is still there: %v, %v", left, err)
		}
		wantNoSockets(t, spec.Dir)
	}
}
