// Package proto is the language of the control channel: what the host and the guest
// agent say to each other on it. It owns the wire types and their framing and knows
// nothing of how the channel is carried (a virtio-serial port, vsock, a pipe in a test).
//
// A channel carries many streams. The side that opens a stream writes one [Header] frame;
// what follows depends on the header's service:
//
//	control   one reply frame, then the stream ends (a remote procedure call)
//	exec      client frames [ExecInput], agent frames [ExecEvent]
//	stdio     raw bytes of one file descriptor of an exec session
//	put       a tar stream towards the agent, then one reply frame
//	get       one reply frame, then a tar stream from the agent, then one reply frame
//	dial      one reply frame, then raw bytes to and from the address
//	ssh       the SSH protocol, served by the agent
//	measure   raw bytes one way, and a reply frame if they came from the client
//
// A frame is a big-endian uint32 length and that many bytes of JSON, at most [MaxFrame].
package proto

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxFrame is the largest frame either side accepts, in bytes.
const MaxFrame = 1 << 20

// Version is the protocol's version; both ends are built together, so they only check
// that it is the same.
const Version = 1

// VsockPort is where the agent takes connections in a machine that has a vsock, and where it
// connects to on its host, once, to tell that it does.
const VsockPort = 1024

// NoPowerSwitch is a kernel argument that tells the guest that its machine has no power
// switch: its only end is a restart.
const NoPowerSwitch = "banger.poweroff=restart"

// Service names what a stream is for.
type Service string

const (
	ServiceControl Service = "control"
	ServiceExec    Service = "exec"
	ServiceStdio   Service = "stdio"
	ServicePut     Service = "put"
	ServiceGet     Service = "get"
	ServiceDial    Service = "dial"
	ServiceSSH     Service = "ssh"
	ServiceMeasure Service = "measure"
)

// Header opens a stream. Only the field that belongs to its service is set.
type Header struct {
	Service Service         `json:"service"`
	Method  string          `json:"method,omitempty"` // control
	Params  json.RawMessage `json:"params,omitempty"` // control
	Exec    *Exec           `json:"exec,omitempty"`
	Stdio   *Stdio          `json:"stdio,omitempty"`
	Put     *Put            `json:"put,omitempty"`
	Get     *Get            `json:"get,omitempty"`
	Dial    *Dial           `json:"dial,omitempty"`
	Measure *Measure        `json:"measure,omitempty"`
}

// Reply answers a control call, put, get or dial.
type Reply struct {
	Error  *Error          `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// Error is a failure in the guest.
type Error struct {
	Code    string `json:"code"` // an errs.Kind
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Exec starts a command. The client picks Session and opens one stdio stream for each
// descriptor that it names in FDs (0, 1, 2; with TTY only 0, which then carries both
// directions); the command starts once all of them have arrived.
type Exec struct {
	Session string   `json:"session"` // 32 hex digits, chosen by the client, never reused
	Argv    []string `json:"argv"`    // empty: the user's login shell
	Env     []string `json:"env,omitempty"`
	Dir     string   `json:"dir,omitempty"`  // empty: the user's home
	User    string   `json:"user,omitempty"` // empty: root
	TTY     bool     `json:"tty,omitempty"`
	Size    *Size    `json:"size,omitempty"`   // of the terminal
	FDs     []int    `json:"fds"`              // descriptors not named are /dev/null
	Detach  bool     `json:"detach,omitempty"` // no FDs: output goes to /dev/console; Exit comes, as 0, once it was started
}

// Size of a terminal in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// ExecInput is a frame from the client on an exec stream.
type ExecInput struct {
	Resize *Size  `json:"resize,omitempty"`
	Signal string `json:"signal,omitempty"` // INT, TERM, HUP, QUIT, KILL, USR1, USR2, WINCH, TSTP, CONT
}

// ExecEvent is the frame from the agent on an exec stream: Exit or Error, after which
// every byte that the command had written before it ended still arrives on its stdio
// streams.
type ExecEvent struct {
	Exit  *Exit  `json:"exit,omitempty"`
	Error *Error `json:"error,omitempty"` // the command was never started
}

// Exit tells how a command ended. Code follows the shell's convention: the exit status,
// 128+n for signal n, 127 where the command was not found, 126 where it can't be run.
type Exit struct {
	Code    int    `json:"code"`
	Signal  string `json:"signal,omitempty"`
	Message string `json:"message,omitempty"` // for 126 and 127
}

// Stdio binds a stream to descriptor FD of an exec session.
type Stdio struct {
	Session string `json:"session"`
	FD      int    `json:"fd"`
}

// Put writes a tar stream below Path. The tree's root entry is named "."; its children
// follow as "./a", "./a/b". If Path is an existing directory, the root becomes
// Path/Base, else it becomes Path itself, whose parent must exist.
type Put struct {
	Path string `json:"path"`
	Base string `json:"base"`
}

// Get reads the file or tree at Path. The first reply's result is a [Got], that of the
// last, which follows the archive's end marker, a [GotAll].
type Get struct {
	Path string `json:"path"`
}

// Got describes what a get is about to send.
type Got struct {
	Base  string `json:"base"` // the last element of the path
	IsDir bool   `json:"is_dir"`
	Bytes int64  `json:"bytes"` // of the regular files in it, for progress; -1 unknown
}

// GotAll tells what a get left out: entries that are no files, directories or links, or
// that went away meanwhile.
type GotAll struct {
	Skipped []string `json:"skipped,omitempty"`
}

// Dial connects to an address as seen from the guest.
type Dial struct {
	Network string `json:"network"` // tcp or unix
	Address string `json:"address"`
}

// Measure asks for Bytes zero bytes from the agent; with 0 the agent takes bytes until the
// client ends its direction, and then replies. It tells what the channel itself can carry.
type Measure struct {
	Bytes int64 `json:"bytes"`
}

// Control methods, with the types of their parameters and results.
const (
	MethodConfigure = "configure" // Configure → Configured; idempotent
	MethodHealth    = "health"    // nothing → Health
	MethodStats     = "stats"     // nothing → Stats
	MethodSetTime   = "set-time"  // SetTime → nothing
	MethodClock     = "clock"     // Clock → Clock
	MethodFreeze    = "freeze"    // nothing → nothing: sync, then freeze the root filesystem
	MethodThaw      = "thaw"      // nothing → nothing
	MethodShutdown  = "shutdown"  // Shutdown → nothing; the machine then powers off or reboots
	MethodWaitBoot  = "wait-boot" // nothing → Boot, once the image's init has finished its start
	MethodGrowRoot  = "grow-root" // nothing → GrowRoot: the root filesystem fills its disk
	MethodTrim      = "trim"      // nothing → Trim: the root filesystem tells its disk what it does not need
	MethodFree      = "free"      // FreeFrom → Free: a part of what the root filesystem does not need
	MethodShed      = "shed"      // nothing → nothing: what clones may not share is given up, and all is on the disk
	MethodRehearse  = "rehearse"  // nothing → nothing: what a command takes has been done once
	MethodReach     = "reach"     // Reach → nothing, once the address has answered
)

// Configure gives a machine its identity. It is sent after a cold boot, before the
// image's init starts, and again after a restore from a snapshot; sending it twice
// changes nothing.
type Configure struct {
	VMID           string   `json:"vm_id"`
	Hostname       string   `json:"hostname"`
	MachineID      string   `json:"machine_id"` // 32 hex digits
	Links          []Link   `json:"links,omitempty"`
	Nameservers    []string `json:"nameservers,omitempty"`
	Search         []string `json:"search,omitempty"`
	AuthorizedKeys []string `json:"authorized_keys,omitempty"` // for the agent's SSH server only
	SSHHostKey     string   `json:"ssh_host_key,omitempty"`    // PEM, OpenSSH format
	UnixNanos      int64    `json:"unix_nanos,omitempty"`      // the host's clock when this was sent
	Entropy        []byte   `json:"entropy,omitempty"`         // credited to the kernel's pool
	GrowRoot       bool     `json:"grow_root,omitempty"`
	Env            []string `json:"env,omitempty"` // of every command that exec starts, before its own

	// Clone says that the machine goes on from a saved state of another, whose identity it
	// is to lose.
	Clone *Clone `json:"clone,omitempty"`
}

// Clone is what is new in a clone and nowhere else.
type Clone struct {
	BootID string `json:"boot_id,omitempty"` // a UUID; empty: it has one of its own
	Shed   bool   `json:"shed,omitempty"`    // what it goes on from has given up the rest before it was saved
}

// Configured tells the clock at the end of a configure, and how long ago that was asked for: the
// host knows how long the two messages took, and so how far the clock may be off.
type Configured struct {
	UnixNanos int64 `json:"unix_nanos"`
	TookNanos int64 `json:"took_nanos"`
}

// Link is a network interface as it should be.
type Link struct {
	MAC       string   `json:"mac"`
	OldMAC    string   `json:"old_mac,omitempty"` // what a clone's interface may still have
	Addresses []string `json:"addresses"`         // CIDR
	Gateway   string   `json:"gateway,omitempty"`
	MTU       int      `json:"mtu,omitempty"`
}

// Health says how the guest is.
type Health struct {
	VMID       string `json:"vm_id"` // empty before the first configure
	Configured bool   `json:"configured"`
	Init       string `json:"init"` // path of the image's init, or "banger-guest"
	Kernel     string `json:"kernel"`
	UptimeMS   int64  `json:"uptime_ms"`
}

// Stats is the guest's own view of itself.
type Stats struct {
	MemoryTotalBytes     int64   `json:"memory_total_bytes"`
	MemoryAvailableBytes int64   `json:"memory_available_bytes"`
	RootTotalBytes       int64   `json:"root_total_bytes"`
	RootFreeBytes        int64   `json:"root_free_bytes"`
	Load1                float64 `json:"load1"`
	CPUSeconds           float64 `json:"cpu_seconds"` // busy, over all CPUs
	RxBytes              int64   `json:"rx_bytes"`
	TxBytes              int64   `json:"tx_bytes"`
}

// SetTime sets the guest's clock.
type SetTime struct {
	UnixNanos int64 `json:"unix_nanos"`
}

// Clock moves the guest's clock by so much, and tells what it shows then. The host knows how
// long that took, and so how far the clock may still be off.
type Clock struct {
	AdjustNanos int64 `json:"adjust_nanos,omitempty"`
	UnixNanos   int64 `json:"unix_nanos"`
}

// Shutdown ends the machine through its init where it has one.
type Shutdown struct {
	Reboot bool `json:"reboot,omitempty"`
}

// Reach names an address that is to be connected to. That nobody listens there is an answer.
type Reach struct {
	Address string `json:"address"` // of TCP
}

// Boot says how the image's init came up.
type Boot struct {
	State string `json:"state"` // running, degraded, or what systemd said instead
}

// GrowRoot says what became of the root filesystem.
type GrowRoot struct {
	OldBytes int64 `json:"old_bytes"`
	NewBytes int64 `json:"new_bytes"`
}

// Trim says how much the root filesystem told its disk that it does not need: what it had
// not told before, at least.
type Trim struct {
	Bytes int64 `json:"bytes"`
}

// FreeFrom asks for what is free from an offset of the disk on.
type FreeFrom struct {
	Offset int64 `json:"offset"`
}

// Free lists ranges of the root disk that no file uses: offset and length of each in bytes,
// in order. The list goes on at Next, if that is not 0.
type Free struct {
	Ranges [][2]int64 `json:"ranges"`
	Next   int64      `json:"next,omitempty"`
}

// ErrFrameTooLarge is returned for a frame longer than MaxFrame.
var ErrFrameTooLarge = errors.New("frame is larger than the protocol allows")

// WriteFrame writes v as one frame, in one Write.
func WriteFrame(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	if len(body) > MaxFrame {
		return ErrFrameTooLarge
	}
	frame := make([]byte, 4+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	copy(frame[4:], body)
	_, err = w.Write(frame)
	return err
}

// ReadFrame reads one frame into v. It reads not a byte beyond the frame, so raw bytes
// may follow on the same stream. At a clean end before any byte it returns io.EOF.
func ReadFrame(r io.Reader, v any) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > MaxFrame {
		return ErrFrameTooLarge
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decode frame: %w", err)
	}
	return nil
}
