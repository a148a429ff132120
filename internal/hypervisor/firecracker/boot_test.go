package firecracker

import (
	"context"
	"strings"
	"testing"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/hypervisortest"
)

// needFirecracker skips a test on a host that can't run it; the lab can.
func needFirecracker(t *testing.T) {
	t.Helper()
	if _, err := host.LookPath(DefaultBinary); err != nil {
		t.Skipf("SKIP: %v; %s", err, errs.HintOf(err))
	}
	if kvm := host.ProbeKVM("/"); !kvm.Usable {
		t.Skipf("SKIP: no KVM: %s", kvm.Reason)
	}
}

func TestConformance(t *testing.T) { suite(t).Run(t) }

func TestStreamOfAGiB(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: it takes minutes")
	}
	suite(t).Stream(t)
}

func suite(t *testing.T) hypervisortest.Suite {
	needFirecracker(t)
	kernel, modules := hypervisortest.Bundle(t)
	return hypervisortest.Suite{
		New:       func() hypervisor.Hypervisor { return named(DefaultBinary) },
		Accel:     hypervisor.KVM,
		Saves:     true,
		Jails:     true,
		Kernel:    kernel,
		Initramfs: hypervisortest.Initramfs(t, modules),
	}
}

// The oldest version that is supported has no ACPI, so Debian's kernel finds no device there
// but the console; the rest of it works as ever.
func TestConformanceOfTheOldest(t *testing.T) {
	needFirecracker(t)
	const program = "firecracker-v1.7.0"
	if _, err := host.LookPath(program); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	kernel, modules := hypervisortest.Bundle(t)
	h, dir := named(program), t.TempDir()
	spec := hypervisor.MachineSpec{
		VMID: "oldest", Dir: dir, Accel: hypervisor.KVM, CPUs: 1, MemoryBytes: 256 << 20,
		Kernel: kernel, Initramfs: hypervisortest.Initramfs(t, modules), Cmdline: []string{"ignore_loglevel"},
		Disks: []hypervisor.Disk{{Path: kernel, Format: "raw", ReadOnly: true}},
	}
	m, err := launch(t, h, spec)
	if err != nil {
		t.Fatal(err)
	}
	hear(t, m, "Linux version")
	record := m.Record()
	m.Close()
	if m, err = h.Adopt(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, change := range []func(context.Context) error{m.Pause, m.Resume} {
		if err := change(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	hear(t, m, "Run /init as init process")
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantOnlyLogs(t, dir)

	spec.Initramfs = kernel // is none: the kernel panics, and the machine ends
	if m, err = launch(t, h, spec); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	if e := m.Exit(); !e.Clean || !strings.Contains(e.Reason, "panic") {
		t.Errorf("exit %+v", e)
	}
	hear(t, m, "Kernel panic")
}

// hear waits until a text is on a machine's console.
func hear(t *testing.T, m hypervisor.Machine, text string) {
	t.Helper()
	log, err := m.Console().Log(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var said strings.Builder
	for b := make([]byte, 4096); !strings.Contains(said.String(), text); {
		n, err := log.Read(b)
		said.Write(b[:n])
		if err != nil && !strings.Contains(said.String(), text) {
			t.Fatalf("it did not say %q: %v\n%s", text, err, said.String())
		}
	}
}
