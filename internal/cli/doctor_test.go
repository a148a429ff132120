package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/config"
)

func TestMend(t *testing.T) {
	file := filepath.Join(t.TempDir(), "it's fixed")
	var said bytes.Buffer
	a := &app{Program: Program{Stderr: &said, Env: os.Environ()}}
	checks := []api.Check{
		{Name: "a", Status: "ok", Fix: []string{"touch", file + " a"}},
		{Name: "b", Status: "warning", Detail: "no fix"},
		{Name: "c", Status: "failed", Detail: "broken", Fix: []string{"false"}},
		{Name: "d", Status: "warning", Detail: "missing", Fix: []string{"touch", file}},
	}
	tried, err := a.mend(t.Context(), checks, true)
	if err != nil || !tried {
		t.Errorf("tried: %v, %v", tried, err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file + " a"); err == nil {
		t.Error("what was well was mended")
	}
	if !strings.Contains(said.String(), "c: broken") || !strings.Contains(said.String(), "false: exit status 1") {
		t.Errorf("said %s", &said)
	}
	if got := commandLine([]string{"touch", "it's"}); got != `touch 'it'\''s'` {
		t.Errorf("shown as %s", got)
	}
	if tried, err := a.mend(t.Context(), checks[:2], true); tried || err != nil {
		t.Errorf("nothing to mend: %v, %v", tried, err)
	}
}

// A command that mends is of the same banger as the doctor: not of that in the default places.
func TestMendElsewhere(t *testing.T) {
	dir := t.TempDir()
	state, file := filepath.Join(dir, "state"), filepath.Join(dir, "said")
	c, err := config.Load(func(name string) string { return map[string]string{"HOME": dir}[name] }, 1000, map[string]string{"state_dir": state})
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	a := &app{Program: Program{Stderr: &said, Env: os.Environ()}, config: c}
	checks := []api.Check{{Name: "a", Status: "warning", Fix: []string{"sh", "-c", `echo "$BANGER_STATE_DIR $BANGER_SOCKET" > "$0"`, file}}}
	if _, err := a.mend(t.Context(), checks, true); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != state+" "+c.Socket+"\n" {
		t.Errorf("it is told %q, %v, %s", got, err, &said)
	}
}
