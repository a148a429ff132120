package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/config"
	"banger/internal/hypervisor"
	"banger/internal/runtimedir"
	"banger/internal/vm"
)

// A Firecracker with which Debian's kernel finds no device runs the VMs of those only who ask for it.
func TestAnOldFirecrackerIsPassedOver(t *testing.T) {
	bundle := runtimedir.Bundle{Dir: t.TempDir()}
	program := bundle.Program("firecracker/firecracker")
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	for version, passedOver := range map[string]bool{"1.7.0": true, "1.14.10": false} {
		if err := os.WriteFile(program, []byte("#!/bin/sh\necho 'Firecracker v"+version+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		v := newVMM(t.TempDir(), config.Firecracker{}, func() (runtimedir.Bundle, error) { return bundle, nil })
		for _, backend := range []hypervisor.Backend{vm.AutoBackend, hypervisor.Firecracker} {
			err := v.firecracker(t.Context(), vm.Spec{Backend: backend, Accel: "kvm", Net: vm.NetNone}, "")
			if refused := err != nil && strings.Contains(err.Error(), "command line only"); refused != (passedOver && backend == vm.AutoBackend) {
				t.Errorf("%s by %s: %v", version, backend, err)
			}
			if doubts := v.Doubts(t.Context(), hypervisor.Firecracker); (doubts != "") != passedOver || v.Doubts(t.Context(), hypervisor.QEMU) != "" {
				t.Errorf("doubts of %s: %q", version, doubts)
			}
			err = v.firecracker(t.Context(), vm.Spec{Backend: hypervisor.Firecracker, Accel: "kvm", Net: vm.NetNone, HugePages: true}, "")
			if refused := err != nil && strings.Contains(err.Error(), "since 1.11"); refused != passedOver {
				t.Errorf("huge pages by %s: %v", version, err)
			}
		}
	}
}
