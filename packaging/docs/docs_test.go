package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The pages that are made are as they would be made now.
func TestPagesAreUpToDate(t *testing.T) {
	if os.Getenv("BANGER_RUNTIME_DIR") == "" {
		t.Skip("SKIP: make test runs it, after whatever changes commands")
	}
	fresh, kept := t.TempDir(), "../../docs"
	if err := pages(fresh); err != nil {
		t.Fatal(err)
	}
	want, err := filepath.Glob(filepath.Join(fresh, "commands", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	have, err := filepath.Glob(filepath.Join(kept, "commands", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	if len(want) != len(have) {
		t.Errorf("there are %d pages of commands, and should be %d; make docs makes them", len(have), len(want))
	}
	for _, path := range append(want, filepath.Join(fresh, "config.md")) {
		name := strings.TrimPrefix(path, fresh)
		a, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(kept, name))
		if err != nil || string(a) != string(b) {
			t.Errorf("docs%s is not what the command says now (%v); make docs makes it", name, err)
		}
	}
}

// Every command has a man page, and each shell its completions.
func TestInstall(t *testing.T) {
	dir := t.TempDir()
	if err := install(dir); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		"man/man1/banger-run.1": "banger run --rm -- make test", "man/man1/banger-runtime-fetch.1": "rollback",
		"bash-completion/completions/banger": "__start_banger", "zsh/site-functions/_banger": "#compdef banger", "fish/vendor_completions.d/banger.fish": "complete -c banger",
	} {
		if b, err := os.ReadFile(filepath.Join(dir, path)); err != nil || !strings.Contains(strings.ReplaceAll(string(b), `\-`, "-"), says) {
			t.Errorf("%s does not say %q: %v", path, says, err)
		}
	}
}
