package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProbeKVM(t *testing.T) {
	const intel, amd = "processor\t: 0\nflags\t\t: fpu vmx sse\n", "flags : fpu svm\n"
	for _, c := range []struct {
		name, cpuinfo, module string
		nested                string // the module's parameter
		node                  bool
		reason                string // empty: usable
		canNest               bool
	}{
		{"Intel", intel, "kvm_intel", "Y\n", true, "", true},
		{"Intel that does not nest", intel, "kvm_intel", "N\n", true, "", false},
		{"AMD", amd, "kvm_amd", "1\n", true, "", true},
		{"AMD that does not nest", amd, "kvm_amd", "0\n", true, "", false},
		{"AMD that knows no nesting", amd, "kvm_amd", "", true, "", false},
		{"a module that needs no CPU support", "flags : fpu sse\n", "kvm_pvm", "1", true, "neither vmx nor svm", false},
		{"a flag's name inside another", "flags : fpu vmxoff nosvm\n", "kvm_intel", "Y", true, "neither vmx nor svm", false},
		{"a flag named in another field", "bugs : vmx\nflags : fpu\n", "kvm_intel", "Y", true, "neither vmx nor svm", false},
		{"the other vendor's module", intel, "kvm_amd", "1", true, "kvm_intel is not loaded", false},
		{"no module", amd, "", "", true, "kvm_amd is not loaded", false},
		{"no node", intel, "kvm_intel", "Y", false, "/dev/kvm can't be opened: no such file", false},
		{"an empty cpuinfo", "", "kvm_intel", "Y", true, "neither vmx nor svm", false},
	} {
		root := t.TempDir()
		write := func(path, text string) {
			path = filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("proc/cpuinfo", c.cpuinfo)
		if c.module != "" {
			write("sys/module/"+c.module+"/parameters/npt", "Y")
		}
		if c.nested != "" {
			write("sys/module/"+c.module+"/parameters/nested", c.nested)
		}
		if c.node {
			write("dev/kvm", "")
		}
		got := ProbeKVM(root)
		if got.Nested != c.canNest || got.Usable && got.Module != c.module {
			t.Errorf("%s: %+v", c.name, got)
		}
		if got.Usable != (c.reason == "") || !strings.Contains(got.Reason, c.reason) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	if got := ProbeKVM(t.TempDir()); got.Usable || got.Reason == "" {
		t.Errorf("an empty root: %+v", got)
	}
}

func TestAvailableBytes(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]int64{
		"MemTotal:       16384 kB\nMemFree:          100 kB\nMemAvailable:    2048 kB\n": 2 << 20,
		"MemTotal:       16384 kB\n": -1,
		"MemAvailable:    much kB\n": -1,
	} {
		if err := os.WriteFile(filepath.Join(root, "proc/meminfo"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := AvailableBytes(root); want >= 0 && (err != nil || got != want) || want < 0 && err == nil {
			t.Errorf("of %q: %d, %v", text, got, err)
		}
	}
	if got, err := AvailableBytes("/"); err != nil || got <= 0 {
		t.Errorf("this host: %d, %v", got, err)
	}
}

func TestCPUModelTellsCPUsApart(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	model := func(text string) string {
		if err := os.WriteFile(filepath.Join(root, "proc/cpuinfo"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := CPUModel(root)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	const cpu = "processor : 0\nvendor_id : V\ncpu family : 6\nmodel : 1\nstepping : 2\ncpu MHz : 1000\nflags : a b\n\n"
	if model(cpu) != model(cpu+"processor : 1\ncpu MHz : 3000\nflags : a b\n\n") {
		t.Error("a second CPU makes another model")
	}
	for _, other := range []string{strings.Replace(cpu, "a b", "a", 1), strings.Replace(cpu, ": 6", ": 25", 1)} {
		if model(cpu) == model(other) {
			t.Errorf("%q is the same model as %q", other, cpu)
		}
	}
}

func TestSteadyTSC(t *testing.T) {
	for cpuinfo, want := range map[string]bool{
		"flags : tsc constant_tsc nonstop_tsc\n": true,
		"flags : tsc constant_tsc\n":             false, // stops in deep sleep
		"flags : tsc nonstop_tsc\n":              false, // follows the clock frequency
		"":                                       false,
	} {
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "proc/cpuinfo"), []byte(cpuinfo), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := SteadyTSC(root); got != want {
			t.Errorf("%q: %v", cpuinfo, got)
		}
	}
	if SteadyTSC(t.TempDir()) {
		t.Error("a host without cpuinfo has steady counters")
	}
}

func TestFacts(t *testing.T) {
	if n, err := MemoryBytes(); err != nil || n < 64<<20 {
		t.Errorf("memory %d, %v", n, err)
	}
	if n, err := FreeBytes(t.TempDir()); err != nil || n < 0 {
		t.Errorf("free %d, %v", n, err)
	}
	if _, err := FreeBytes("/nonexistent"); !os.IsNotExist(err) {
		t.Errorf("free space of nothing: %v", err)
	}
	if CPUs() < 1 {
		t.Error("no CPU")
	}
}
