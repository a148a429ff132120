package proof

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/host"
	"banger/internal/hypervisor"
)

func TestDecide(t *testing.T) {
	usable := host.KVM{Usable: true}
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(t.TempDir(), "kvm.json")
	proofs, outcome := 0, error(nil)
	ask := func(kvm host.KVM) Verdict {
		t.Helper()
		v, err := (&Prover{Program: func() string { return "sh" }, Cache: cache}).decide(t.Context(), kvm, kernel, func(ctx context.Context) error {
			if _, bounded := ctx.Deadline(); !bounded {
				t.Error("the proof has no bound")
			}
			proofs++
			return outcome
		})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := ask(host.KVM{Reason: "no svm"}); v != (Verdict{hypervisor.TCG, "no svm"}) || proofs != 0 {
		t.Errorf("without KVM: %+v after %d proofs", v, proofs)
	}
	for range 2 {
		if v := ask(usable); v != (Verdict{Accel: hypervisor.KVM}) || proofs != 1 {
			t.Errorf("with KVM: %+v after %d proofs", v, proofs)
		}
	}
	// Another kernel is another question.
	if err := os.WriteFile(kernel, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	outcome = errors.New("it did not boot")
	for range 2 {
		if v := ask(usable); v.Accel != hypervisor.TCG || !strings.Contains(v.Reason, "it did not boot") || proofs != 2 {
			t.Errorf("with a KVM that does not work: %+v after %d proofs", v, proofs)
		}
	}
	// A cache that is damaged is none.
	outcome = nil
	if err := os.WriteFile(cache, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v := ask(usable); v.Accel != hypervisor.KVM || proofs != 3 {
		t.Errorf("with a damaged cache: %+v after %d proofs", v, proofs)
	}
}

func TestAProofThatWasCutShortProvesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cache := filepath.Join(t.TempDir(), "kvm.json")
	_, err := (&Prover{Program: func() string { return "sh" }, Cache: cache}).decide(ctx, host.KVM{Usable: true}, "/dev/null", func(context.Context) error {
		cancel()
		return context.Canceled
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(cache); !errors.Is(err, os.ErrNotExist) {
		t.Error("it was remembered")
	}
}
