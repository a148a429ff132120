// Package hypervisor owns what a virtual machine monitor is to the rest of banger: a
// machine to launch, to find again, to talk to and to end. Its subpackages drive one
// program each. It knows nothing of VMs as users see them: no names, no states, no store.
package hypervisor

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"banger/internal/host"
)

// Accel is how guest instructions are run.
type Accel string

const (
	KVM Accel = "kvm" // by the CPU, with a hardware boundary around the guest
	TCG Accel = "tcg" // translated in software: slow, and no security boundary
)

// Backend is the program that runs a machine.
type Backend string

const (
	QEMU        Backend = "qemu"
	Firecracker Backend = "firecracker"
)

// MachineSpec describes a machine wholly; launching the same spec twice gives the same
// machine. Paths are absolute.
type MachineSpec struct {
	VMID        string // for error messages and the process's title
	Dir         string // private directory (0700): sockets and logs of this machine only
	Jailed      bool   // its process has a user, files and limits of its own (see package jail); root can give it those
	Backend     Backend
	Accel       Accel
	Nested      bool // the CPU shows virtualization, so that the guest can run machines itself
	CPUs        int
	MemoryBytes int64
	HugePages   bool     // its memory is of the host's pages of 2 MiB, which it must have reserved
	Kernel      string   // an ELF vmlinux with a PVH note
	Initramfs   string   // one file; several cpio archives may lie end to end in it
	Cmdline     []string // kernel arguments beyond those the machine itself needs
	Disks       []Disk   // the guest sees them in this order: vda, vdb, …
	NICs        []NIC

	// From is what the machine goes on from instead of booting: one of its kin, saved. It is
	// paused when it is launched, and its NICs have the hardware addresses of the one saved.
	From *Saved
}

// Saved is a machine at one moment, in two files that any number of machines may go on from.
// Both hold whatever secrets the guest had in its memory.
type Saved struct {
	Memory string // sparse, as long as the machine's memory: machines write to copies of its pages
	State  string // of CPUs and devices
}

// Disk is a virtio block device.
type Disk struct {
	Path     string // of a regular file or a block device
	Format   string // raw or qcow2; never probed
	Backing  *Disk  // of a qcow2: what lies below it; its own header is not to be trusted for that
	ReadOnly bool
	Limit    Limit
}

// Limit is how much may be read from a disk and written to it each second, together; 0 is as much as it likes.
type Limit struct {
	Bytes    int64
	Requests int64
}

// NIC is a virtio network device.
type NIC struct {
	Mode NICMode
	MAC  string // aa:bb:cc:dd:ee:ff

	// Of mode tap: one of them, as the VMM needs it.
	TAP     *os.File // to inherit; the caller keeps its own
	TAPName string   // to open, as the only one who does
}

// NICMode is what a network device is connected to.
type NICMode string

const (
	NICUser NICMode = "user" // the VMM's own network stack, no privilege needed
	NICTAP  NICMode = "tap"  // a TAP device of the host's
)

// Forward makes a port of the guest's one of the host's, by the network stack of a NIC of
// mode user.
type Forward struct {
	Protocol string         // tcp or udp
	Host     netip.AddrPort // IPv4
	Guest    uint16
}

// Record is what must be remembered to find a running machine again: the process, proven
// by its start time and the boot it lives in, and the directory of its sockets.
type Record struct {
	Process host.Process `json:"process"`
	Dir     string       `json:"dir"`
	VMID    string       `json:"vm_id"`
	Accel   Accel        `json:"accel"`
	Backend Backend      `json:"backend,omitempty"` // empty in records of when there was QEMU only
}

// Hypervisor launches machines and adopts those launched before.
type Hypervisor interface {
	// Launch starts the machine and returns once its process runs and its monitor
	// answers. The context bounds the launch only, never the machine's life. On error
	// nothing of the machine is left but its logs.
	Launch(ctx context.Context, spec MachineSpec) (Machine, error)

	// Adopt takes charge of a machine launched by an earlier daemon. It returns an
	// errs.NotFound error if that very process no longer runs.
	Adopt(ctx context.Context, rec Record) (Machine, error)

	// Kin tells by a digest which machines can go on from each other's saved state: those of
	// one VMM, one kind of CPU and one set of devices and kernel arguments. Of which files
	// kernel and disks consist is not in it, nor which machine it is.
	Kin(spec MachineSpec) (string, error)
}

// Machine is one running VMM process.
type Machine interface {
	Record() Record

	// Channel connects to the host end of the control channel. At most one connection
	// is open at a time; a second waits for the first to close. The bytes are those that
	// the guest's agent reads; the handshake is the guest package's.
	Channel(ctx context.Context) (net.Conn, error)

	// Console returns the console's log and live end.
	Console() Console

	Pause(ctx context.Context) error
	Resume(ctx context.Context) error

	// Save writes what the machine is at one moment to two empty files, which become a
	// [Saved]. Where the accelerator allows it a machine that runs does so meanwhile, but for
	// the last milliseconds. Afterwards it is paused, and its disks are as they were at that
	// moment; on error it is as before.
	Save(ctx context.Context, memory, state *os.File) error

	// Halts tells, each time, why the machine has stopped its CPUs by itself: a disk of
	// its could not be written to. Resume tries that write again.
	Halts() <-chan string

	// Usage tells what the process takes of the host now.
	Usage() (host.Usage, error)

	// Report tells what the VMM knows of the machine beside that.
	Report(ctx context.Context) Report

	// Complaint is what went wrong last, in the VMM's own words; or empty.
	Complaint() string

	// Forward opens a forward by the machine's first NIC, whose mode is user, or closes it.
	Forward(ctx context.Context, f Forward, open bool) error

	// Kill ends the process at once and waits until it is gone.
	Kill(ctx context.Context) error

	// Done is closed once the process is gone; Exit then tells how it went.
	Done() <-chan struct{}
	Exit() Exit

	// Close lets go of the machine without ending it: connections and goroutines of
	// this process only.
	Close() error
}

// Report is what a VMM tells of its machine. What it does not know is nil.
type Report struct {
	Balloon *Balloon
	Devices *Devices
}

// Balloon is what the driver of a guest's balloon tells of its memory, in bytes, and of what went to
// and from its swap.
type Balloon struct {
	HeldBytes      int64 // taken from the guest
	TotalBytes     int64
	FreeBytes      int64
	AvailableBytes int64
	CachedBytes    int64 // of disks, which can be had back at once
	SwappedIn      int64
	SwappedOut     int64
	MajorFaults    int64
	MinorFaults    int64
}

// Devices is what a VMM counts of a machine's devices, since it was launched or adopted.
type Devices struct {
	DiskReadBytes  int64
	DiskWriteBytes int64
	DiskThrottled  int64 // times that a limit held a disk up
	DiskFailures   int64
	NetReadBytes   int64 // by the guest
	NetWriteBytes  int64
	NetFailures    int64
	ConsoleDropped int64 // bytes that came faster than they are let through
	ForbiddenCalls int64 // system calls that its filter stopped
}

// Exit tells how a VMM process ended.
type Exit struct {
	At     time.Time
	Reason string // a sentence: "powered off by the guest", "killed by signal 9", "qemu failed: <last words>"
	Clean  bool   // the guest powered off or was told to
}

// Console is a machine's serial console.
type Console interface {
	// Log reads what is kept of the output, oldest first; with follow the reader
	// blocks for more until the machine is gone or ctx is done.
	Log(ctx context.Context, follow bool) (io.ReadCloser, error)

	// Attach joins the live console: reads what it prints from now on, writes what is
	// typed. Several may be attached.
	Attach() (io.ReadWriteCloser, error)
}
