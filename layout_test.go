package banger

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// listed is what `go list` tells of a package.
type listed struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// rules say what a package may import of banger's own; packages that are not named here
// may import any but those that closed keeps to themselves.
var rules = map[string][]string{
	"banger/internal/cli":         {"banger/api", "banger/internal/config", "banger/internal/errs", "banger/internal/service"},
	"banger/internal/host":        {"banger/internal/errs"},
	"banger/internal/jail":        {"banger/internal/errs", "banger/internal/host"},
	"banger/internal/undo":        {},
	"banger/internal/errs":        {},
	"banger/internal/dns":         {"banger/internal/errs"},
	"banger/internal/network":     {"banger/internal/errs", "banger/internal/host"},
	"banger/internal/op":          {"banger/internal/errs"},
	"banger/internal/server":      {"banger/api", "banger/internal/errs", "banger/internal/op", "banger/internal/vm", "banger/internal/guest/proto", "banger/internal/hypervisor", "banger/internal/jail", "banger/internal/network", "banger/internal/template"},
	"banger/internal/dns/publish": {"banger/internal/dns", "banger/internal/errs", "banger/internal/host"},
	"banger/api":                  {"banger/internal/guest/proto", "banger/internal/guest/session", "banger/internal/unixsock"},
}

// closed packages are imported by those named only.
var closed = map[string][]string{
	"banger/internal/vm":     {"banger/internal/daemon", "banger/internal/server", "banger/internal/store", "banger/internal/vmdir", "banger/internal/faults"},
	"banger/internal/faults": {"banger/internal/daemon"}, // in builds with the tag "faults" only
	"banger/internal/vmdir":  {"banger/internal/daemon"},
	"banger/internal/store":  {"banger/internal/daemon"},
	"banger/internal/server": {"banger/internal/daemon"},
	"banger/internal/daemon": {"banger/cmd/bangerd"},
	"banger/internal/cli":    {"banger/cmd/banger", "banger/packaging/docs"},
	"banger/internal/guestd": {"banger/cmd/banger-guest"},
}

func TestPackagesImportOnlyWhatTheyMay(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range p.Imports {
			if imp != "banger" && !strings.HasPrefix(imp, "banger/") {
				if slices.Contains([]string{"banger/internal/undo", "banger/internal/errs"}, p.ImportPath) && strings.Contains(imp, ".") {
					t.Errorf("%s imports %s; it may use the standard library only", p.ImportPath, imp)
				}
				continue
			}
			if may, ruled := rules[p.ImportPath]; ruled && !slices.Contains(may, imp) {
				t.Errorf("%s may not import %s", p.ImportPath, imp)
			}
			if by, ok := closed[imp]; ok && !slices.Contains(by, p.ImportPath) {
				t.Errorf("%s may not import %s; only %s may", p.ImportPath, imp, strings.Join(by, ", "))
			}
		}
	}
}

func TestNoPackageIsCalledUtil(t *testing.T) {
	for _, p := range packages(t) {
		name := p.ImportPath[strings.LastIndex(p.ImportPath, "/")+1:]
		if slices.Contains([]string{"util", "utils", "common", "helpers", "misc", "shared", "pkg"}, name) {
			t.Errorf("%s has a name that says nothing", p.ImportPath)
		}
	}
}

// Artefacts of the runtime bundle are never tracked.
func TestNoArtefactIsTracked(t *testing.T) {
	out, err := exec.Command("git", "ls-files", "-z").Output()
	if err != nil {
		t.Skip("SKIP: this is no git checkout")
	}
	for _, name := range strings.Split(string(out), "\x00") {
		for _, pattern := range []string{"runtime/", "build/", ".ext4", ".qcow2", ".cpio", "vmlinux", "vmlinuz", ".test"} {
			base := name[strings.LastIndex(name, "/")+1:]
			if name == strings.TrimSuffix(pattern, "/") || strings.HasPrefix(name, pattern) || strings.HasSuffix(base, pattern) {
				t.Errorf("%s is tracked", name)
			}
		}
	}
}

// Each check that SPECIFICATION.md names is there to be run.
func TestSpecificationNamesItsChecks(t *testing.T) {
	spec, err := os.ReadFile("SPECIFICATION.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.go").Output()
	if err != nil {
		t.Skip("SKIP: this is no git checkout")
	}
	var sources strings.Builder
	for _, name := range strings.Split(strings.TrimSuffix(string(files), "\x00"), "\x00") {
		if b, err := os.ReadFile(name); err == nil {
			sources.Write(b)
		}
	}
	promises := 0
	for line := range strings.Lines(string(spec)) {
		columns := strings.Split(line, "|")
		if len(columns) != 5 {
			continue
		}
		for _, name := range regexp.MustCompile("`(Test[A-Za-z]+|[a-z0-9]+_[a-z0-9_]+)`").FindAllStringSubmatch(columns[3], -1) {
			promises++
			// A test's function, a figure's name, or the beginning of one that is put together.
			if !strings.Contains(sources.String(), "func "+name[1]+"(") && !strings.Contains(sources.String(), `"`+name[1]+`"`) {
				t.Errorf("nothing checks %q: %s is nowhere", strings.TrimSpace(columns[1]), name[1])
			}
		}
	}
	if promises < 20 {
		t.Errorf("only %d checks were found", promises)
	}
}
