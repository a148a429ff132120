package firecracker

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/errs"
	"banger/internal/hypervisor"
)

// tellAll gives calls as the API gets them.
func tellAll(t *testing.T, calls []call) string {
	t.Helper()
	var told strings.Builder
	for _, c := range calls {
		body, err := json.Marshal(c.body)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&told, "%s %s %s\n", c.method, c.path, body)
	}
	return told.String()
}

// What users and the host's owner ask for is told too.
func TestConfigurationTellsWhatIsAskedFor(t *testing.T) {
	spec := goodSpec(t)
	spec.HugePages = true
	spec.Disks[0].Limit = hypervisor.Limit{Bytes: 50 << 20, Requests: 1000}
	template := filepath.Join(t.TempDir(), "template.json")
	text := `{"msr_modifiers":[{"addr":"0x10a","bitmap":"0b1"}],"cpuid_modifiers":[{"leaf":"0x1","subleaf":"0x0","flags":0,"modifiers":[{"register":"ecx","bitmap":"0b1"}]}]}`
	if err := os.WriteFile(template, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	own, err := Options{DiskIO: DiskAsync, CPUTemplate: template}.tuning()
	if err != nil {
		t.Fatal(err)
	}
	has, err := featuresOf(newest)
	if err != nil {
		t.Fatal(err)
	}
	told := tellAll(t, configuration(spec, has, own))
	for _, want := range []string{
		`/machine-config {"vcpu_count":2,"mem_size_mib":256,"huge_pages":"2M"}`,
		// The template's first; what hides virtualization comes last.
		`/cpu-config {"cpuid_modifiers":[{"leaf":"0x1","subleaf":"0x0","flags":0,"modifiers":[{"register":"ecx","bitmap":"0b1"}]},{"leaf":"0x1","subleaf":"0x0","flags":0,"modifiers":[{"register":"ecx","bitmap":"0bx`,
		`"msr_modifiers":[{"addr":"0x10a","bitmap":"0b1"}]}`,
		`"path_on_host":"run/disk0","is_read_only":false,"is_root_device":false,"cache_type":"Writeback","io_engine":"Async",` +
			`"rate_limiter":{"bandwidth":{"size":52428800,"refill_time":1000},"ops":{"size":1000,"refill_time":1000}}}`,
		`"path_on_host":"run/disk1","is_read_only":true,"is_root_device":false,"cache_type":"Writeback","io_engine":"Async"}`,
		`/serial {"rate_limiter":{"size":262144,"one_time_burst":4194304,"refill_time":1000}}`,
	} {
		if !strings.Contains(told, want) {
			t.Errorf("it was told\n%s\nwithout %s", told, want)
		}
	}
	for name, text := range map[string]string{"no JSON": "x", "another thing": `{"vcpu_count":1}`} {
		if err := os.WriteFile(template, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := (Options{CPUTemplate: template}).tuning(); errs.KindOf(err) != errs.Invalid || errs.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (Options{CPUTemplate: template + "x"}).tuning(); errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "" {
		t.Errorf("no file: %v", err)
	}
}
