package service

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// systemd takes the units, and rates the exposure of root's OK, which is below 5: what it would
// have forbidden besides is what the daemon is for (see TestWhatTheSystemUnitAllows).
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("SKIP: this host has no systemd-analyze")
	}
	root := t.TempDir()
	files := Prefix("/usr").Files()
	if err := Write(root, files); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"usr/bin/bangerd", "usr/share/man/man1/banger.1"} { // the units name them
		path := filepath.Join(root, program)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	units := filepath.Join(root, "usr/lib/systemd/system")
	out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=49", "--no-pager", filepath.Join(units, "bangerd.service")).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out[strings.LastIndex(strings.TrimSpace(string(out)), "\n")+1:])
	}
	for _, dir := range []string{units, filepath.Join(root, "usr/lib/systemd/user")} {
		for _, unit := range []string{"bangerd.service", "bangerd.socket"} {
			out, _ := exec.Command(analyze, "verify", "--man=no", "--recursive-errors=no", filepath.Join(dir, unit)).CombinedOutput()
			for line := range strings.Lines(string(out)) {
				if !strings.Contains(line, "is not executable") { // it lies below root
					t.Errorf("%s: %s", unit, line)
				}
			}
		}
	}
	for _, f := range files {
		if b, err := os.ReadFile(filepath.Join(root, f.Path)); err != nil || strings.Contains(string(b), "@") && strings.HasSuffix(f.Path, ".service") && strings.Contains(string(b), "DIR@") {
			t.Errorf("%s: %v", f.Path, err)
		}
	}
	gone, err := Remove(root, files)
	if err != nil || len(gone) != len(files) {
		t.Errorf("removed %d of %d: %v", len(gone), len(files), err)
	}
}
