package hypervisortest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/errs"
	"banger/internal/hypervisor"
)

// testBadInitramfs boots a kernel with nothing to start: it panics, which ends the machine and is read
// on its console.
func (s Suite) testBadInitramfs(t *testing.T) {
	if s.Accel != hypervisor.KVM {
		t.Skip("SKIP: a kernel panics the same with KVM, where it takes less time; make test-lab")
	}
	spec := s.Spec(t.TempDir())
	spec.Initramfs = filepath.Join(t.TempDir(), "initramfs")
	if err := os.WriteFile(spec.Initramfs, []byte("no archive"), 0o444); err != nil {
		t.Fatal(err)
	}
	m := s.launch(t, spec)
	waitDone(t, m)
	if e := m.Exit(); !strings.Contains(e.Reason, "panic") || !strings.Contains(logOf(t, m), "Kernel panic") {
		t.Errorf("exit %+v; its console says %q", e, logOf(t, m))
	}
	wantOnlyLogs(t, spec.Dir)
}

func (s Suite) testFailedLaunch(t *testing.T) {
	spec := s.Spec(t.TempDir())
	garbage := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(garbage, []byte("no kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec.Kernel = garbage
	if m, err := s.New().Launch(bounded(t), spec); errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "" {
		t.Errorf("a kernel of garbage: %v, %v", m, err)
	} else {
		t.Log(err)
	}
	wantOnlyLogs(t, spec.Dir)

	spec = s.Spec(t.TempDir())
	spec.Disks = []hypervisor.Disk{{Path: filepath.Join(t.TempDir(), "none"), Format: "raw"}}
	if m, err := s.New().Launch(bounded(t), spec); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("a disk that is not there: %v, %v", m, err)
	}
	wantOnlyLogs(t, spec.Dir)

	spec = s.Spec(t.TempDir())
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if m, err := s.New().Launch(cancelled, spec); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled launch: %v, %v", m, err)
	}
	wantOnlyLogs(t, spec.Dir)
}
