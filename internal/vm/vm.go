// Package vm owns virtual machines as users know them: their names, their states, and the
// one way through each verb. It declares what it needs of disks, machines, images and the
// store, and knows nothing of HTTP, SQL or QEMU.
package vm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"banger/internal/disk"
	"banger/internal/guest/proto"
	"banger/internal/hypervisor"
	"banger/internal/image"
	"banger/internal/jail"
	"banger/internal/kernel"
	"banger/internal/network"
)

// Spec is what was asked for, with every default filled in.
type Spec struct {
	Image       string             `json:"image"`
	Kernel      string             `json:"kernel"`
	CPUs        int                `json:"cpus"`
	MemoryBytes int64              `json:"memory_bytes"`
	HugePages   bool               `json:"huge_pages,omitempty"`  // its memory is of pages of 2 MiB
	DiskBytes   int64              `json:"disk_bytes"`            // 0: the image's size
	DiskDriver  string             `json:"disk_driver,omitempty"` // a driver's name, or auto
	DiskLimit   hypervisor.Limit   `json:"disk_limit,omitzero"`
	Net         Net                `json:"net"`
	Isolated    bool               `json:"isolated,omitempty"`    // other guests can't reach it, nor it them
	HostAccess  bool               `json:"host_access,omitempty"` // it reaches every service of the host's
	Forwards    []network.Forward  `json:"forwards,omitempty"`
	Backend     hypervisor.Backend `json:"backend,omitempty"`  // settled when it is made; empty in VMs of when there was QEMU only
	Accel       string             `json:"accel"`              // auto, kvm or tcg
	Nested      bool               `json:"nested,omitempty"`   // its CPU shows virtualization
	Unjailed    bool               `json:"unjailed,omitempty"` // its VMM is not confined
	Env         []string           `json:"env,omitempty"`
	AutoRemove  bool               `json:"auto_remove,omitempty"`
	Lease       string             `json:"lease,omitempty"`     // removed when this lease ends
	Autostart   bool               `json:"autostart,omitempty"` // if it ran, it runs again after a restart of the host
	Throwaway   bool               `json:"throwaway,omitempty"` // no user's: a template is made of it
	Snapshot    string             `json:"snapshot,omitempty"`  // what it goes on from in its first life, instead of booting
	Pooled      bool               `json:"pooled,omitempty"`    // no user's yet: it is kept ready
}

// AutoBackend asks for the best backend that can.
const AutoBackend hypervisor.Backend = "auto"

// Net is how a VM is connected.
type Net string

const (
	NetNone   Net = "none"   // no interface
	NetUser   Net = "user"   // the VMM's own network stack, which needs no privilege
	NetBridge Net = "bridge" // a TAP on the host's bridge
)

// VM is one virtual machine: what was asked for, what it is, and where it stands.
type VM struct {
	ID     string `json:"id"` // 12 hex digits, never reused
	Name   string `json:"name"`
	Spec   Spec   `json:"spec"`
	State  State  `json:"state"`
	Reason string `json:"reason,omitempty"` // why it is failed, or why it stopped if nobody asked

	MachineID  string       `json:"machine_id"` // of the guest's operating system, 32 hex digits
	MAC        string       `json:"mac,omitempty"`
	Address    netip.Prefix `json:"address,omitzero"` // on the bridge, for as long as the VM exists
	HostKey    string       `json:"ssh_host_key"`     // of the agent's SSH server: PEM
	HostKeyPub string       `json:"ssh_host_key_pub"` // its public half: "ssh-ed25519 AAAA…"

	Base    disk.Base          `json:"base"`
	Disk    disk.Volume        `json:"disk"`
	Machine *hypervisor.Record `json:"machine,omitempty"`

	Template  string `json:"template,omitempty"`  // or snapshot, whose disk the VM's lies on
	Pristine  bool   `json:"pristine,omitempty"`  // its guest has never run, so that it can go on from that
	Hardware  string `json:"hardware,omitempty"`  // key of what its machine is, as it was launched
	Suspended bool   `json:"suspended,omitempty"` // its machine is kept in its directory

	CreatedAt time.Time     `json:"created_at"`
	StartedAt time.Time     `json:"started_at,omitzero"`
	StoppedAt time.Time     `json:"stopped_at,omitzero"`
	StartTook time.Duration `json:"start_took,omitempty"` // of the last start, until the guest answered
	StartKind Boot          `json:"start_kind,omitempty"` // of the last start
}

// Kind is a kind of host object that a VM owns at most one of. Names and paths derive from
// the VM's id, so whoever removes one needs no memory of how it was made.
type Kind string

const (
	KindDirectory Kind = "directory" // its directory with logs and sockets
	KindDisk      Kind = "disk"      // the files of its root volume
	KindAttached  Kind = "attached"  // the block devices that its machine opens of that
	KindMachine   Kind = "machine"   // its VMM process
	KindNetwork   Kind = "network"   // its port on the bridge, which lives and ends with the machine
)

// Resource is a host object as the store knows it: pending from before it is made until
// after, live from then until it is gone.
type Resource struct {
	Kind Kind
	Live bool
}

// Store keeps VMs. Each method is one transaction, durable when it returns unless it says
// otherwise.
type Store interface {
	// Create adds a VM with the resources it is about to make. errs.Conflict if the
	// name is taken.
	Create(ctx context.Context, v VM, pending ...Kind) error
	Get(ctx context.Context, ref string) (VM, error) // by id or exact name
	List(ctx context.Context) ([]VM, error)          // by name
	// Update changes a VM and the resources it names, in one step. A change of state
	// is recorded as an event with its cause.
	Update(ctx context.Context, id, cause string, change func(*VM) error, resources ...Change) (VM, error)
	// Intend is an Update that any daemon of this boot sees when it returns, and that is durable
	// once sync has returned nil. What is done before that may be no more than what a loss of
	// power does too.
	Intend(ctx context.Context, id, cause string, change func(*VM) error, resources ...Change) (v VM, sync func() error, err error)
	// Delete drops the row of a VM whose last resources are the ones named, now gone. A loss of
	// power may bring the row back as it was, deleting, for recovery to drop it again; but not
	// once another transaction is durable.
	Delete(ctx context.Context, id, cause string, gone ...Kind) error
	Resources(ctx context.Context, id string) ([]Resource, error)
	// Restore adds a VM as it was known elsewhere, with the resources that it may have.
	Restore(ctx context.Context, v VM, resources ...Change) error

	// Readdress gives VMs other addresses, all in one step, and makes the networks of those
	// that have one pending, until their guests know.
	Readdress(ctx context.Context, to map[string]netip.Prefix) error

	// Note records an event that is no VM's.
	Note(ctx context.Context, cause, reason string) error
	// Events returns what happened after the event with this number, oldest first, at most
	// limit events. Old ones are dropped in time.
	Events(ctx context.Context, after int64, limit int) ([]Event, error)
	// LastEvent returns the number of the newest event, or 0.
	LastEvent(ctx context.Context) (int64, error)
	// Changed returns a channel that is closed when there may be new events.
	Changed() <-chan struct{}
}

// Event is one transition of a VM.
type Event struct {
	Seq    int64 // ever growing, without end
	At     time.Time
	VM     string // id; empty: it is about the host
	Name   string
	From   State // empty: the VM is new
	To     State // empty: the VM is gone
	Cause  string
	Reason string // why it is failed, or why it stopped if nobody asked
}

// Change is what happens to a resource in an Update.
type Change struct {
	Kind   Kind
	Status Status
}

// Status is what a resource becomes.
type Status string

const (
	Pending Status = "pending"
	Live    Status = "live"
	Gone    Status = "gone"
)

// Hypervisor launches, adopts and removes machines.
type Hypervisor interface {
	hypervisor.Hypervisor

	// Choose settles what runs a machine of this spec that is to boot this vmlinux, and how:
	// as asked for, or for [AutoBackend] and an acceleration of auto by what the spec takes
	// and what is proven to work. errs.Unavailable if the VMM itself is missing, or the host
	// can't give what the spec asks for; errs.Invalid if the backend never can.
	Choose(ctx context.Context, spec Spec, vmlinux string) (hypervisor.Backend, hypervisor.Accel, error)

	// Doubts tells what speaks against a backend that can run VMs and is asked for by name: a
	// sentence, or "".
	Doubts(ctx context.Context, backend hypervisor.Backend) string

	// Remove ends the machine that was launched in dir for the VM, if one is there, and
	// removes its sockets; logs stay. The record may be missing when a crash came
	// between launch and record. Finding nothing is success.
	Remove(ctx context.Context, vmid, dir string, rec *hypervisor.Record) error

	// ReadLog reads the console log that machines launched in dir have left.
	ReadLog(dir string) (io.ReadCloser, error)
}

// Dirs are the VMs' own directories, each with a copy of its VM's row, from which the store
// can be made again should it be lost.
type Dirs interface {
	// Path is where the VM's directory is, or would be.
	Path(id string) string
	Make(id string) error
	// Save replaces the copy of the VM's row. Where there is no directory there is no copy.
	Save(v VM) error
	// Remove takes the directory away with all that is in it. Finding none is success.
	Remove(id string) error
	// Keep makes two empty files in the directory for the VM's machine to be saved in, in the
	// place of earlier ones.
	Keep(id string) (memory, state *os.File, err error)
	// Seal records what has been saved in them, and has that survive a power cut; the files have
	// been synced.
	Seal(id string) error
	// CheckKept tells whether they are not any more what they were.
	CheckKept(id string) error
	// Kept is what has been saved in them.
	Kept(id string) hypervisor.Saved
	// DropKept removes them. Finding none is success.
	DropKept(id string) error
	// List returns the names of all that is in the place of the VMs' directories.
	List() ([]string, error)
	// Saved returns the VMs that the directories have copies of, and the names of those
	// directories that have none that can be read.
	Saved() (vms []VM, unreadable []string, err error)
}

// Images finds images by name.
type Images interface {
	Image(name string) (image.Image, error)
}

// Kernels finds kernels by name, and makes what boots them.
type Kernels interface {
	Kernel(name string) (kernel.Kernel, error)
	// Initramfs returns the path of the kernel's initramfs with the guest agent in it.
	Initramfs(ctx context.Context, k kernel.Kernel) (string, error)
}

// Guest is the host end of a VM's control channel.
type Guest interface {
	Call(ctx context.Context, method string, params, result any) error
	// Join opens a stream for a client and moves its bytes until both directions ended.
	Join(ctx context.Context, h proto.Header, client *net.UnixConn) error
	// Streams is how many streams are open.
	Streams() int
	Done() <-chan struct{}
	Close() error
}

// Connect makes a Guest of a connection to a machine's control channel, and returns once
// the guest has answered. It takes the function that connects rather than a connection,
// for it may have to do so several times.
type Connect func(ctx context.Context, dial func(context.Context) (net.Conn, error)) (Guest, error)

// newID returns an id for a VM. The uid of its machine is made of its first digits, so no two
// VMs have the same.
func (m *Manager) newID() (string, error) {
	all, err := m.Dirs.List()
	for err == nil {
		id := randomHex(6)
		if !slices.ContainsFunc(all, func(other string) bool { return strings.HasPrefix(other, id[:jail.Digits]) }) {
			return id, nil
		}
	}
	return "", err
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b)
}

// macOf derives a VM's hardware address from its id. The first octet marks it as locally
// administered and unicast.
func macOf(id string) string {
	return fmt.Sprintf("02:%s:%s:%s:%s:%s", id[0:2], id[2:4], id[4:6], id[6:8], id[8:10])
}
