package e2e

import (
	"strings"
	"testing"

	"banger/internal/host"
	"banger/internal/jail"
)

// TestKVM runs VMs with KVM, asked for and found by banger itself, by each VMM that is there.
// The lab is a host that has it (make test-lab).
func TestKVM(t *testing.T) {
	if kvm := host.ProbeKVM("/"); !kvm.Usable {
		t.Skipf("SKIP: no KVM: %s", kvm.Reason)
	}
	for backend, program := range map[string]string{"qemu": "qemu-system-x86_64", "firecracker": "firecracker"} {
		t.Run(backend, func(t *testing.T) {
			if _, err := host.LookPath(program); err != nil {
				t.Skipf("SKIP: %v", err)
			}
			testKVM(t, backend)
		})
	}
}

func testKVM(t *testing.T, backend string) {
	b := newBanger(t)
	flags := []string{"--backend", backend, "--net", "user"}
	if backend == "firecracker" { // it has no network of its own
		flags = []string{"--backend", backend, "--net", "none"}
	}
	if r := b.run("in\n", append(append([]string{"run", "--rm"}, flags...), "--accel", "kvm", "--image", "tiny", "--", "sh", "-c", "cat; exit 3")...); r.code != 3 || r.out != "in\n" {
		t.Errorf("run with KVM: %+v", r)
	}
	if got := b.run("", "doctor").out; !strings.Contains(got, "KVM works here") {
		t.Errorf("doctor says %q", got)
	}
	name := b.vm(flags...)
	vm := b.inspect(name)
	if vm.Accel != "kvm" || vm.Backend != backend || strings.Contains(strings.Join(vm.Notes, " "), "TCG") {
		t.Errorf("a VM of a host with KVM has %s, by %s, with the notes %q", vm.Accel, vm.Backend, vm.Notes)
	}
	if lacking, _ := jail.Lacking(); jail.Check() == nil && lacking == "" {
		if c := vm.Confinement; c == nil || c.MemoryMaxBytes == nil || c.CPUsMax == nil || c.ProcessesMax == nil || len(vm.Notes) > 0 {
			t.Errorf("where all limits can be had a VMM has %+v, with the notes %q", c, vm.Notes)
		}
	}
	if got := b.ok("exec", name, "--", "sh", "-c", "grep -cwE 'svm|vmx' /proc/cpuinfo || true"); got != "0\n" {
		t.Errorf("%q of its CPUs show virtualization that was not asked for", got)
	}
	b.ok("restart", name)
	b.killDaemon()
	if got := b.ok("exec", name, "--", "hostname"); got != name+"\n" {
		t.Errorf("after the daemon's death it calls itself %q", got)
	}
}

// What a guest has in its memory goes on with KVM as it does without.
func TestKVMMemoryGoesOn(t *testing.T) {
	if kvm := host.ProbeKVM("/"); !kvm.Usable {
		t.Skipf("SKIP: no KVM: %s", kvm.Reason)
	}
	t.Run("qemu", func(t *testing.T) {
		memoryGoesOn(t, newBanger(t), "--net", "none", "--backend", "qemu", "--accel", "kvm")
	})
	t.Run("firecracker", func(t *testing.T) {
		needFirecracker(t)
		memoryGoesOn(t, newBanger(t), "--net", "none", "--backend", "firecracker")
	})
}
