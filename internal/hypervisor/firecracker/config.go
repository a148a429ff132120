package firecracker

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"banger/internal/guest/proto"
	"banger/internal/hypervisor"
)

// The bodies of the API, as far as they are used here.
type (
	machineConfig struct {
		CPUs      int    `json:"vcpu_count"`
		MemoryMiB int64  `json:"mem_size_mib"`
		HugePages string `json:"huge_pages,omitempty"`
	}
	cpuConfig struct {
		Capabilities []json.RawMessage `json:"kvm_capabilities,omitempty"`
		Leaves       []cpuidLeaf       `json:"cpuid_modifiers"`
		MSRs         []json.RawMessage `json:"msr_modifiers,omitempty"`
	}
	cpuidLeaf struct {
		Leaf      string          `json:"leaf"`
		Subleaf   string          `json:"subleaf"`
		Flags     int             `json:"flags"`
		Registers []cpuidRegister `json:"modifiers"`
	}
	cpuidRegister struct {
		Register string `json:"register"`
		Bits     string `json:"bitmap"` // from the highest; x leaves one as it is
	}
	bootSource struct {
		Kernel    string `json:"kernel_image_path"`
		Initramfs string `json:"initrd_path"`
		Arguments string `json:"boot_args"`
	}
	drive struct {
		ID       string   `json:"drive_id"`
		Path     string   `json:"path_on_host"`
		ReadOnly bool     `json:"is_read_only"`
		Root     bool     `json:"is_root_device"`
		Cache    string   `json:"cache_type"`
		Engine   string   `json:"io_engine,omitempty"`
		Limit    *limiter `json:"rate_limiter,omitempty"`
	}
	limiter struct {
		Bytes    *tokenBucket `json:"bandwidth,omitempty"`
		Requests *tokenBucket `json:"ops,omitempty"`
	}
	networkInterface struct {
		ID  string `json:"iface_id"`
		TAP string `json:"host_dev_name"`
		MAC string `json:"guest_mac"`
	}
	vsock struct {
		CID  int    `json:"guest_cid"`
		Path string `json:"uds_path"`
	}
	entropy struct{}
	balloon struct {
		AmountMiB    int64 `json:"amount_mib"`
		DeflateOnOOM bool  `json:"deflate_on_oom"`
		StatsSeconds int   `json:"stats_polling_interval_s"`
		Reporting    bool  `json:"free_page_reporting,omitempty"`
	}
	tokenBucket struct {
		Size       int64 `json:"size"`
		Burst      int64 `json:"one_time_burst,omitempty"`
		RefillTime int64 `json:"refill_time"` // milliseconds
	}
	serial struct {
		Limit tokenBucket `json:"rate_limiter"`
	}
	action struct {
		Type string `json:"action_type"`
	}
	vmState struct {
		State string `json:"state"`
	}
	snapshot struct {
		Type   string `json:"snapshot_type"`
		State  string `json:"snapshot_path"`
		Memory string `json:"mem_file_path"`
	}
	snapshotLoad struct {
		State    string            `json:"snapshot_path"`
		Memory   memoryBackend     `json:"mem_backend"`
		Networks []networkOverride `json:"network_overrides,omitempty"`
	}
	memoryBackend struct {
		Type string `json:"backend_type"`
		Path string `json:"backend_path"`
	}
	networkOverride struct {
		ID  string `json:"iface_id"`
		TAP string `json:"host_dev_name"`
	}
)

// guestCID is the guest's address on its vsock. Each machine has a vsock of its own, so all
// may have the same.
const guestCID = 3

// configuration gives the calls that describe a machine, in their order; the start is not
// among them. The spec has been checked.
func configuration(spec hypervisor.MachineSpec, has features, own tuning) []call {
	machine := machineConfig{CPUs: spec.CPUs, MemoryMiB: spec.MemoryBytes >> 20}
	if spec.HugePages {
		machine.HugePages = "2M"
	}
	calls := []call{
		put("/machine-config", machine),
		put("/cpu-config", noVirtualization(own.cpu)),
		put("/boot-source", bootSource{Kernel: spec.Kernel, Initramfs: spec.Initramfs,
			Arguments: strings.Join(append(kernelArguments(), spec.Cmdline...), " ")}),
	}
	for i, d := range spec.Disks {
		// Flushes of the guest reach the host's disk; left alone, Firecracker drops them.
		// The root is not told: the kernel's arguments are the caller's.
		id := diskID(i)
		calls = append(calls, put("/drives/"+id, drive{ID: id, Path: diskLink(i), ReadOnly: d.ReadOnly, Cache: "Writeback",
			Engine: own.engine, Limit: limitOf(d.Limit)}))
	}
	for i, n := range spec.NICs {
		id := nicID(i)
		calls = append(calls, put("/network-interfaces/"+id, networkInterface{ID: id, TAP: n.TAPName, MAC: n.MAC}))
	}
	calls = append(calls,
		put("/vsock", vsock{CID: guestCID, Path: vsockSocket}),
		put("/entropy", entropy{}),
	)
	if !spec.HugePages || has.hugeBalloon {
		// Empty, it takes nothing from the guest; it is there for what the guest gives back, and tells.
		calls = append(calls, put("/balloon", balloon{DeflateOnOOM: true, StatsSeconds: statsSeconds, Reporting: has.pageReporting}))
	}
	if has.serialLimit {
		calls = append(calls, put("/serial", serial{tokenBucket{Size: serialBytes, Burst: serialBurst, RefillTime: 1000}}))
	}
	return calls
}

// limitOf gives the limiter of a disk, nil if it has no limit.
func limitOf(l hypervisor.Limit) *limiter {
	bucket := func(size int64) *tokenBucket {
		if size == 0 {
			return nil
		}
		return &tokenBucket{Size: size, RefillTime: 1000}
	}
	if l == (hypervisor.Limit{}) {
		return nil
	}
	return &limiter{Bytes: bucket(l.Bytes), Requests: bucket(l.Requests)}
}

func diskID(i int) string { return fmt.Sprintf("disk%d", i) }
func nicID(i int) string  { return fmt.Sprintf("net%d", i) }

// diskLink is the name of a disk in the machine's directory: the same for all that go on from one
// that was saved, each of which has other disks.
func diskLink(i int) string { return socketDir + "/" + diskID(i) }

// noVirtualization hides from the guest, whatever else its CPU's template says, that the CPU has any:
// VMX, bit 5 of ECX in leaf 1, and SVM, bit 2 of ECX in leaf 0x80000001. The one that the CPU's maker
// does not have is zero anyway.
func noVirtualization(template cpuConfig) cpuConfig {
	hide := func(leaf string, bit int) cpuidLeaf {
		bits := []byte("0b" + strings.Repeat("x", 32))
		bits[len(bits)-1-bit] = '0'
		return cpuidLeaf{Leaf: leaf, Subleaf: "0x0", Registers: []cpuidRegister{{"ecx", string(bits)}}}
	}
	template.Leaves = append(slices.Clone(template.Leaves), hide("0x1", 5), hide("0x80000001", 2))
	return template
}

// statsSeconds is the time between two reports of a guest's balloon. Each is one wake-up of the guest.
const statsSeconds = 5

// What of a console is let through, in bytes: a burst and then so much each second. A boot
// with all messages writes 100 kB.
const (
	serialBurst = 4 << 20
	serialBytes = 256 << 10
)

// kernelArguments are those that the machine itself needs. Its only way out is the reset line
// of a keyboard controller, of which it has no more than that.
func kernelArguments() []string {
	return []string{
		"console=ttyS0", "8250.nr_uarts=1", "quiet",
		"panic=-1", "reboot=k",
		// There is no such controller, no PCI bus, and no power switch.
		"i8042.noaux", "i8042.nomux", "i8042.dumbkbd", "pci=off", proto.NoPowerSwitch,
		"cryptomgr.notests", // self-tests of ciphers
	}
}
