package main

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// exited is the error of a process that ended with this code.
func exited(t *testing.T, code string) error {
	t.Helper()
	err := exec.Command("sh", "-c", "exit "+code).Run()
	if err == nil {
		t.Fatal("it succeeded")
	}
	return err
}

func TestReport(t *testing.T) {
	const good = `=== RUN   TestA
=== RUN   TestA/sub
    a_test.go:7: SKIP: no KVM: the CPU has none
--- PASS: TestA (0.00s)
    --- SKIP: TestA/sub (0.00s)
PASS
`
	const bad = "--- FAIL: TestB (0.10s)\n    b_test.go:9: got 1\n--- PASS: TestC (0.00s)\nFAIL\n"
	for _, c := range []struct {
		name, output string
		err          error
		failed       bool
		want         string
	}{
		{"good", good, nil, false, "ok    s                                        1 passed, 0 failed, 1 skipped\n      SKIP: no KVM: the CPU has none\n"},
		{"bad", bad, exited(t, "1"), true, "1 passed, 1 failed, 0 skipped: tests failed\n"},
		{"panics", "--- PASS: TestA (0.00s)\npanic: oh", exited(t, "2"), true, ": exit status 2\n"},
		{"the lab is gone", good, exited(t, "125"), true, ": exit status 125\n"},
		{"hangs", "=== RUN   TestA\n", errors.New("it did not end within 1m"), true, ": it did not end within 1m\n"},
		{"has no tests", "testing: warning: no tests to run\nPASS\n", nil, true, ": it has no such tests\n"},
	} {
		var r report
		var passedOn bytes.Buffer
		s := r.suite("s", &passedOn)
		for piece := range strings.SplitSeq(c.output, "S") { // cut anywhere
			_, _ = io.WriteString(s, piece)
			_, _ = io.WriteString(s, "S")
		}
		s.end(c.err)
		if r.failed() != c.failed || !strings.Contains(r.summary(), c.want) {
			t.Errorf("%s: failed is %v, and it says\n%s", c.name, r.failed(), r.summary())
		}
		if passedOn.String() != c.output+"S" {
			t.Errorf("%s: passed on %q", c.name, passedOn.String())
		}
	}
}

func TestChoose(t *testing.T) {
	all := []suite{{pkg: "internal/disk"}, {pkg: "internal/disk/qcow2", short: true}, {pkg: "e2e"}}
	some := append(all[:2:2], suite{pkg: "e2e", tests: "TestA"}, suite{pkg: "e2e", tests: "TestB"})
	if chosen, err := choose(some, options{names: []string{"e2e -run TestB"}}); err != nil || len(chosen) != 1 || chosen[0].tests != "TestB" {
		t.Errorf("one of a package's: %v, %v", chosen, err)
	}
	for _, c := range []struct {
		names string
		short bool
		want  string // packages; "" for an error
	}{
		{"", false, "internal/disk internal/disk/qcow2 e2e"},
		{"internal/disk", false, "internal/disk internal/disk/qcow2"},
		{"./internal/disk/", false, "internal/disk internal/disk/qcow2"},
		{"internal/disk/qcow2 internal e2e", false, "internal/disk internal/disk/qcow2 e2e"},
		{"e2e nonesuch", false, ""},
		{"", true, "internal/disk/qcow2"},
		{"internal", true, "internal/disk/qcow2"},
		{"e2e", true, ""},
	} {
		chosen, err := choose(all, options{names: strings.Fields(c.names), short: c.short})
		var got []string
		for _, s := range chosen {
			got = append(got, s.pkg)
		}
		if strings.Join(got, " ") != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%q chooses %q, %v", c.names, got, err)
		}
	}
}

// Every suite is of a package that has tests, and none is there twice.
func TestSuites(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range suites {
		if seen[s.String()] {
			t.Errorf("%s is there twice", s)
		}
		seen[s.String()] = true
		out, err := exec.Command("go", "list", "-f", "{{.TestGoFiles}}{{.XTestGoFiles}}", "banger/"+s.pkg).Output()
		if err != nil || strings.TrimSpace(string(out)) == "[][]" {
			t.Errorf("%s has no tests: %s, %v", s.pkg, out, err)
		}
	}
}
