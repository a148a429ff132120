package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// documented returns the command lines of banger's in a page: all of its blocks "sh".
func documented(t *testing.T, page string) (lines []string) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range shellBlock.FindAllStringSubmatch(string(text), -1) {
		for line := range strings.Lines(block[1]) {
			if line = strings.TrimPrefix(strings.TrimSpace(line), "sudo "); strings.HasPrefix(line, "banger ") {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// Every command line of the README and of the documentation is run, each page's in order
// against a daemon of its own, as a shell reads it. A command in a VM may end as it likes.
func TestDocumentedCommands(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	scripts := t.TempDir()
	var lines []string
	for _, page := range append(pages, "../../README.md") {
		script := "daemon\n"
		for _, line := range documented(t, page) {
			lines = append(lines, line)
			script += fmt.Sprintf("documented %d\n", len(lines)-1)
		}
		if err := os.WriteFile(filepath.Join(scripts, filepath.Base(page)+".txtar"), []byte(script), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if len(lines) < 60 {
		t.Errorf("only %d command lines were found", len(lines))
	}
	p := scriptParams(scripts)
	p.Cmds["documented"] = func(ts *testscript.TestScript, _ bool, args []string) {
		i, err := strconv.Atoi(args[0])
		ts.Check(err)
		runDocumented(ts, lines[i])
	}
	testscript.Run(t, p)
}

// tells are commands that end with 1 where something is not as it should be, as with the
// fake daemon.
var tells = regexp.MustCompile(`^banger (doctor|dns status|system census|system verify|runtime verify|daemon logs)`)

// inVM are commands whose exit code is that of something in a VM.
var inVM = regexp.MustCompile(`^banger (run|exec|ssh)\b`)

// runDocumented has a shell run the line, in a directory with a few files.
func runDocumented(ts *testscript.TestScript, line string) {
	if strings.HasPrefix(line, "banger system install") || strings.HasPrefix(line, "banger system uninstall") {
		line += " --root r" // not this host
	}
	if line = strings.Replace(line, "banger logs -f", "banger logs", 1); strings.Contains(line, "banger events") {
		line = strings.Replace(line, "banger events", "banger events --help", 1) // these would go on for ever
	}
	ts.Check(os.MkdirAll(ts.MkAbs("site"), 0o755))
	ts.Check(os.MkdirAll(ts.MkAbs(".config/banger"), 0o755))
	guests, err := filepath.Glob(ts.MkAbs("state/0*")) // what the fake's VMs have for a root
	ts.Check(err)
	for _, guest := range guests {
		ts.Check(os.MkdirAll(filepath.Join(guest, "root"), 0o755))
		ts.Check(os.MkdirAll(filepath.Join(guest, "var/www"), 0o755))
	}
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir = ts.Getenv("WORK")
	for _, key := range []string{"PATH", "HOME", "BANGER_STATE_DIR", "BANGER_SOCKET", "XDG_CONFIG_HOME", "WORK"} {
		cmd.Env = append(cmd.Env, key+"="+ts.Getenv(key))
	}
	cmd.Env = append(cmd.Env, "USER=root")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	said, code := out.String(), cmd.ProcessState.ExitCode()
	if strings.Contains(said, " --help\n") || err != nil && !inVM.MatchString(line) && !(code == 1 && tells.MatchString(line)) {
		ts.Fatalf("%s: %v\n%s", line, err, said)
	}
}
