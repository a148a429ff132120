package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
)

// stats returns what a VM takes and does.
func (b *banger) stats(name string) api.Stats {
	b.t.Helper()
	var all []api.Stats
	if err := json.Unmarshal([]byte(b.ok("stats", "--json", name)), &all); err != nil || len(all) != 1 {
		b.t.Fatalf("stats: %+v, %v", all, err)
	}
	return all[0]
}

// What can be settled of Firecracker's machines is so: limits of disks, their engine, what CPU guests
// see; and what it tells of them reaches the user.
func TestFirecrackerSettings(t *testing.T) {
	needFirecracker(t)
	b := newBanger(t)
	template := filepath.Join(t.TempDir(), "cpu.json")
	hideRDRAND := `{"cpuid_modifiers":[{"leaf":"0x1","subleaf":"0x0","flags":0,"modifiers":[{"register":"ecx","bitmap":"0bx0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}]}]}`
	if err := os.WriteFile(template, []byte(hideRDRAND), 0o600); err != nil {
		t.Fatal(err)
	}
	b.env = append(b.env, "BANGER_FIRECRACKER_DISK_IO=async", "BANGER_FIRECRACKER_CPU_TEMPLATE="+template)
	b.vm("--name", "a", "--backend", "firecracker", "--net", "none", "--wait", "agent", "--memory", "256M", "--disk-rate", "4M", "--disk-iops", "2000")
	if v := b.inspect("a"); v.Disk.BytesPerSecond != 4<<20 || v.Disk.RequestsPerSecond != 2000 || len(v.Notes) > 0 {
		t.Errorf("it is shown as %+v, with the notes %q", v.Disk, v.Notes)
	}
	if got := b.ok("exec", "a", "--", "sh", "-c", "grep -cwE 'rdrand|svm|vmx' /proc/cpuinfo || true"); got != "0\n" {
		t.Errorf("%s of its CPUs have what their template hides", got)
	}
	b.ok("exec", "a", "--", "sh", "-c", "head -c 8000000 /dev/zero >/root/zeros && sync")
	if s := b.stats("a"); s.Devices == nil || s.Devices.DiskThrottled == 0 || s.Devices.DiskWriteBytes < 8000000 || s.Devices.DiskFailures+s.Devices.NetFailures+s.Devices.ForbiddenCalls > 0 {
		t.Errorf("a disk that was written to faster than it may is counted as %+v", s.Devices)
	}
	eventually(t, "its balloon tells of its memory", func() bool {
		s := b.stats("a").Balloon
		return s != nil && s.TotalBytes > 128<<20 && s.AvailableBytes < s.TotalBytes
	})
	b.ok("exec", "a", "--", "sh", "-c", "mount -t tmpfs none /mnt && head -c 80000000 /dev/urandom >/mnt/full")
	full := b.stats("a").PSSBytes
	b.ok("exec", "a", "--", "rm", "/mnt/full")
	if got := b.run("", "doctor").out; strings.Contains(got, "Firecracker 1.14") {
		eventually(t, "the host has back what its guest has freed", func() bool { return b.stats("a").PSSBytes < full-60<<20 })
	}
	// Limits are of the machine, not of its first start.
	b.ok("restart", "--wait", "agent", "a")
	b.ok("exec", "a", "--", "sh", "-c", "head -c 8000000 /dev/zero >/root/zeros && sync")
	if s := b.stats("a"); s.Devices == nil || s.Devices.DiskThrottled == 0 {
		t.Errorf("after a restart it counts %+v", s.Devices)
	}
	if err := os.WriteFile(template, []byte(`{"vcpu_count":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.refused(125, []string{"is no CPU template", "firecracker_cpu_template"}, "run", "--rm", "--image", "tiny", "--backend", "firecracker", "--net", "none", "--", "true")
}

// hugePages is what the kernel is told of how many it is to keep.
const hugePages = "/proc/sys/vm/nr_hugepages"

// A machine of huge pages has them, by both VMMs; where there are none it is said what to do.
func TestKVMHugePages(t *testing.T) {
	needFirecracker(t)
	if os.Getenv("BANGER_LAB") == "" {
		t.Skip("SKIP: the memory of this host is not to be moved about; the lab's is")
	}
	b := newBanger(t)
	run := []string{"run", "-d", "--image", "tiny", "--net", "none", "--wait", "agent", "--memory", "128M", "--huge-pages"}
	b.refused(125, []string{"takes 64 huge pages, and this host has 0", "vm.nr_hugepages", "--huge-pages"}, append(run, "--backend", "firecracker")...)
	was, err := os.ReadFile(hugePages)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(hugePages, was, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(hugePages, []byte("64\n"), 0); err != nil {
		t.Fatal(err)
	}
	for _, backend := range []string{"firecracker", "qemu"} {
		b.ok(append(run, "--backend", backend, "--name", backend)...)
		v := b.inspect(backend)
		if maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", v.PID)); !v.HugePages || err != nil || !strings.Contains(string(maps), "KernelPageSize:     2048 kB") {
			t.Errorf("%s: %v; its memory has no huge pages, %v", backend, v.HugePages, err)
		}
		if s := b.stats(backend); s.PSSBytes < 32<<20 {
			t.Errorf("%s: of its memory %d bytes are counted", backend, s.PSSBytes)
		}
		b.ok("exec", backend, "--", "true")
		b.refused(1, []string{"can't be kept", "huge pages", "--huge-pages"}, "suspend", backend)
		b.ok("rm", "-f", backend)
	}
}
