package proof

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	prover := &Prover{Program: func() string { return "sh" }, Cache: cache}
	ask := func(kvm host.KVM) Verdict {
		t.Helper()
		v, err := prover.decide(t.Context(), kvm, kernel, func(ctx context.Context) error {
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
	// It is believed until someone doubts it, or for a while.
	for _, doubt := range []func() error{
		prover.Doubt,
		func() error { long := time.Now().Add(-2 * doubtAfter); return os.Chtimes(cache, long, long) },
	} {
		before := proofs
		if err := doubt(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if v := ask(usable); v.Accel != hypervisor.TCG || proofs != before+1 {
				t.Errorf("%+v, proven %d times", v, proofs-before)
			}
		}
	}
	outcome = nil
	if err := prover.Doubt(); err != nil {
		t.Fatal(err)
	}
	if v := ask(usable); v.Accel != hypervisor.KVM {
		t.Errorf("of a KVM that works by now: %+v", v)
	}
	before := proofs
	if err := prover.Doubt(); err != nil { // there is nothing to doubt
		t.Fatal(err)
	}
	// A cache that is damaged is none.
	if err := os.WriteFile(cache, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v := ask(usable); v.Accel != hypervisor.KVM || proofs != before+1 {
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
