// Package api is banger's public interface: the wire types of the daemon's HTTP API and a
// Go client of its Unix socket. Everything that the banger command does it does through
// this package, so whatever it can do other programs can.
package api

import "time"

// State is where a VM is in its life.
type State string

const (
	StateCreating State = "creating"
	StateRunning  State = "running"
	StatePaused   State = "paused"
	StateStopping State = "stopping"
	StateStopped  State = "stopped"
	StateFailed   State = "failed"
	StateDeleting State = "deleting"

	StateSuspended State = "suspended"
)

// VM is a virtual machine as the daemon knows it.
type VM struct {
	ID          string     `json:"id" doc:"Twelve hexadecimal digits, never reused"`
	Name        string     `json:"name" doc:"A DNS label, unique among VMs"`
	State       State      `json:"state" enum:"creating,running,paused,stopping,stopped,failed,deleting,suspended"`
	Image       string     `json:"image"`
	Kernel      string     `json:"kernel"`
	Backend     string     `json:"backend" doc:"The VMM: qemu or firecracker"`
	Accel       string     `json:"accel" doc:"kvm, or tcg: translated in software, which is no security boundary"`
	Nested      bool       `json:"nested" doc:"Its CPU shows virtualization, so that it can run VMs itself"`
	CPUs        int        `json:"cpus"`
	MemoryBytes int64      `json:"memory_bytes"`
	HugePages   bool       `json:"huge_pages,omitempty" doc:"Its memory is of the host's pages of 2 MiB"`
	Disk        Disk       `json:"disk"`
	Network     Network    `json:"network"`
	Start       *Start     `json:"start,omitempty" doc:"The last start; absent before the first"`
	PID         int        `json:"pid,omitempty" doc:"Process id of the VMM while it runs"`
	AutoRemove  bool       `json:"auto_remove" doc:"Removed as soon as it stops"`
	Pooled      bool       `json:"pooled,omitempty" doc:"No user's yet: kept ready for who asks for one like it"`
	Autostart   bool       `json:"autostart" doc:"Started again after a restart of the host, if it ran"`
	CreatedAt   time.Time  `json:"created_at"`
	StartedAt   *time.Time `json:"started_at,omitempty"`
	StoppedAt   *time.Time `json:"stopped_at,omitempty"`
	Error       string     `json:"error" doc:"Why it failed, or why it last stopped; empty while all is well"`
	Directory   string     `json:"directory" doc:"Its files on the host"`
	Notes       []string   `json:"notes,omitempty" doc:"What its user should know, a sentence each"`

	Confinement *Confinement `json:"confinement,omitempty" doc:"How its VMM is confined, as the kernel has it; only of one VM that is asked about, while it runs"`
}

// Confinement is what a VMM's process may do to the host. A limit that is absent is none.
type Confinement struct {
	UID            int    `json:"uid"`
	GID            int    `json:"gid"`
	Capabilities   string `json:"capabilities" doc:"Those in effect, a bit each"`
	NoNewPrivs     bool   `json:"no_new_privs"`
	Seccomp        bool   `json:"seccomp" doc:"Its system calls are filtered"`
	OwnFiles       bool   `json:"own_files" doc:"It sees no file of the host's but those it is made of"`
	OwnNetwork     bool   `json:"own_network" doc:"It has no network but the VM's TAP"`
	MemoryMaxBytes *int64 `json:"memory_max_bytes,omitempty"`
	CPUsMax        *int64 `json:"cpus_max,omitempty"`
	ProcessesMax   *int64 `json:"processes_max,omitempty" doc:"Threads are counted too"`
	FileMaxBytes   *int64 `json:"file_max_bytes,omitempty" doc:"The length of a file that it writes to"`
	OpenFilesMax   *int64 `json:"open_files_max,omitempty"`
}

// Disk is a VM's root disk.
type Disk struct {
	Driver         string `json:"driver"`
	VirtualBytes   int64  `json:"virtual_bytes" doc:"The size the guest sees"`
	ChangedBytes   *int64 `json:"changed_bytes,omitempty" doc:"How much of the disk differs from the image; absent where the driver can't tell"`
	AllocatedBytes int64  `json:"allocated_bytes" doc:"Bytes of the host's that this VM alone takes"`
	DiskLimit
}

// DiskLimit is how much a VM may read from its disk and write to it, together; 0 is as much as it likes.
type DiskLimit struct {
	BytesPerSecond    int64 `json:"bytes_per_second,omitempty"`
	RequestsPerSecond int64 `json:"requests_per_second,omitempty"`
}

// Network is how a VM is connected.
type Network struct {
	Mode string `json:"mode" enum:"user,none,bridge"`
	IP   string `json:"ip,omitempty"`
	MAC  string `json:"mac,omitempty"`
	DNS  string `json:"dns,omitempty" doc:"Its name, while it runs and the host can reach it"`

	Isolated   bool      `json:"isolated,omitempty" doc:"Other VMs can't reach it, nor it them"`
	HostAccess bool      `json:"host_access,omitempty" doc:"It reaches every service of the host's"`
	Forwards   []Forward `json:"forwards,omitempty"`
}

// Forward is a port of the host's that leads to one of a VM's.
type Forward struct {
	Protocol  string `json:"protocol" enum:"tcp,udp"`
	HostIP    string `json:"host_ip"`
	HostPort  int    `json:"host_port"`
	GuestPort int    `json:"guest_port"`
}

// Start tells how a VM was started.
type Start struct {
	Kind string `json:"kind" enum:"cold,warm"`
	MS   int64  `json:"ms" doc:"Milliseconds from the request until the guest answered"`
}

// CreateVM asks for a new VM. A zero field takes the daemon's default.
type CreateVM struct {
	Name        string     `json:"name,omitempty" doc:"A DNS label; one is invented if empty"`
	Image       string     `json:"image,omitempty"`
	Kernel      string     `json:"kernel,omitempty"`
	CPUs        *int       `json:"cpus,omitempty"`
	MemoryBytes *int64     `json:"memory_bytes,omitempty"`
	DiskBytes   *int64     `json:"disk_bytes,omitempty" doc:"Virtual size of the root disk; at least the image's"`
	DiskDriver  string     `json:"disk_driver,omitempty" doc:"auto, or a driver's name: qcow2, reflink, dm, copy"`
	DiskLimit   *DiskLimit `json:"disk_limit,omitempty"`
	HugePages   bool       `json:"huge_pages,omitempty" doc:"Make its memory of the host's pages of 2 MiB, which must be reserved"`
	Net         string     `json:"net,omitempty" doc:"auto, user, none or bridge"`
	Isolated    bool       `json:"isolated,omitempty" doc:"On the bridge: neither reach other VMs nor be reached by them"`
	HostAccess  bool       `json:"host_access,omitempty" doc:"On the bridge: reach every service of the host's"`
	Forwards    []string   `json:"forwards,omitempty" doc:"Ports of the host's to forward: [HOSTIP:]HOST:GUEST[/udp]"`
	Backend     string     `json:"backend,omitempty" doc:"The VMM: auto, firecracker or qemu"`
	Accel       string     `json:"accel,omitempty" doc:"auto, kvm or tcg"`
	Nested      bool       `json:"nested,omitempty" doc:"Give it a CPU that shows virtualization, so that it can run VMs itself"`
	Unjailed    bool       `json:"unjailed,omitempty" doc:"Do not confine its VMM, which then has all rights of the daemon's"`
	Env         []string   `json:"env,omitempty" doc:"K=V, for every command run in the VM"`
	Boot        string     `json:"boot,omitempty" doc:"cold: from the kernel's first instruction; warm: from a template, or not at all; empty: warm where there is a template"`
	From        string     `json:"from,omitempty" doc:"Name of a snapshot to go on from; what the machine is, is that one's"`
	Start       bool       `json:"start" doc:"Start it too, and be done when the guest answers"`
	Wait        string     `json:"wait,omitempty" doc:"boot: until the image's init has finished its start (default); agent: until the guest answers"`
	AutoRemove  bool       `json:"auto_remove,omitempty"`
	Autostart   bool       `json:"autostart,omitempty" doc:"If it ran when the host went down, start it again"`
	Lease       string     `json:"lease,omitempty" doc:"Remove the VM when the connection that holds this lease ends"`
}

// StartVM asks to start a stopped VM.
type StartVM struct {
	Boot string `json:"boot,omitempty" doc:"As in creation. Only a VM that has never run can start warm"`
	Wait string `json:"wait,omitempty" doc:"As in creation"`
}

// StopVM asks to stop a running VM.
type StopVM struct {
	TimeoutSeconds *int `json:"timeout_seconds,omitempty" doc:"How long the guest may take before it is killed; 0 kills it at once"`
}

// RestartVM asks to stop a VM, if it runs, and to start it.
type RestartVM struct {
	StopVM
	StartVM
}

// Image is a root filesystem that VMs share as their base. It is never changed: a name may
// come to mean another image.
type Image struct {
	Name           string       `json:"name" doc:"By which it was made or asked for: repository, or repository:tag"`
	Names          []string     `json:"names" doc:"That mean it now"`
	Title          string       `json:"title" doc:"A reference for people: a name that means it, or its digest"`
	Digest         string       `json:"digest" doc:"sha256:… of its manifest.json; means it for good"`
	ReadOnly       bool         `json:"read_only" doc:"It is part of the runtime bundle"`
	Distribution   string       `json:"distribution"`
	Release        string       `json:"release"`
	Init           string       `json:"init" doc:"Path in the image; empty: it has none"`
	VirtualBytes   int64        `json:"virtual_bytes"`
	AllocatedBytes int64        `json:"allocated_bytes"`
	SHA256         string       `json:"sha256" doc:"Of the filesystem's file"`
	ManifestHash   string       `json:"manifest_hash" doc:"Of the package manifest it was built from"`
	ManifestPath   string       `json:"manifest_path,omitempty" doc:"Of that manifest's file; empty: banger carries it, or there is none"`
	Damage         string       `json:"damage,omitempty" doc:"Why it can't be used; then little else is known"`
	Mend           string       `json:"mend,omitempty" doc:"What to do about that"`
	Stale          string       `json:"stale" doc:"Why it should be built anew; empty: nothing is known against it"`
	Rebuild        string       `json:"rebuild,omitempty" doc:"The command that does so"`
	Phases         []ImagePhase `json:"phases,omitempty" doc:"Of its build"`
	Source         string       `json:"source,omitempty" doc:"Where it is from, if it was not built"`
	Base           *ImageBase   `json:"base,omitempty" doc:"The image that it was made of"`
	Script         string       `json:"script,omitempty" doc:"SHA-256 of what was run in the base to make it"`
	Config         *ImageConfig `json:"config,omitempty" doc:"Of a container image"`
	Packages       []Package    `json:"packages,omitempty" doc:"Given by inspect only"`
	Path           string       `json:"path"`
	BuiltAt        time.Time    `json:"built_at"`
	UsedBy         []string     `json:"used_by" doc:"Names of the VMs whose disks are based on it"`
}

// ImagePhase is a step of an image's build.
type ImagePhase struct {
	Name string `json:"name"`
	Hash string `json:"hash" doc:"Of its input and that of all before it"`
}

// ImageBase is the image that another was made of, as it was called then.
type ImageBase struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}

// ImageConfig is what a container image says of the program in it.
type ImageConfig struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`
	User       string   `json:"user,omitempty"`
	WorkDir    string   `json:"workdir,omitempty"`
}

// ImportImage asks to make an image of a root filesystem of the host's: an OCI layout or
// archive, a Docker archive, a tar archive or an ext4 filesystem.
type ImportImage struct {
	Name      string `json:"name" doc:"That it gets: repository, or repository:tag"`
	Path      string `json:"path,omitempty" doc:"Absolute; empty if it is the body of the request"`
	Ref       string `json:"ref,omitempty" doc:"Which image, where there are several: its name or tag"`
	Platform  string `json:"platform,omitempty" doc:"os/architecture; linux/amd64 if empty"`
	SizeBytes *int64 `json:"size_bytes,omitempty" doc:"Of the filesystem; what fits if absent"`
}

// BuildImage asks to build an image from a manifest of packages.
type BuildImage struct {
	Name      string `json:"name"`
	Path      string `json:"path,omitempty" doc:"Absolute path of the manifest on the host; empty: the one that banger carries for that name"`
	SizeBytes *int64 `json:"size_bytes,omitempty" doc:"Of the filesystem, instead of the manifest's"`
	Refresh   bool   `json:"refresh,omitempty" doc:"With the mirror's newest packages, also where nothing else has changed"`
}

// NewerPackage is a package of an image that the mirror has in a newer version.
type NewerPackage struct {
	Name string `json:"name"`
	Has  string `json:"has"`
	Now  string `json:"now"`
}

// CommitVM asks that the disk of a VM be kept as an image.
type CommitVM struct {
	Name        string `json:"name" doc:"Of the image"`
	Stop        bool   `json:"stop,omitempty" doc:"If it runs, stop it first; otherwise that is refused"`
	KeepResidue bool   `json:"keep_residue,omitempty" doc:"Leave what belongs to the machine: machine-id, host keys, leases, logs, shell history"`
	Script      string `json:"script,omitempty" doc:"SHA-256 of what was run in the VM to make it"`
}

// PrunedImages is what nothing needed any more.
type PrunedImages struct {
	Images     []Image `json:"images"`
	PhaseBytes int64   `json:"phase_bytes" doc:"Of what builds had kept"`
	PullBytes  int64   `json:"pull_bytes" doc:"Of what pulls had kept"`
}

// TagImage asks that a name mean an image.
type TagImage struct {
	Image string `json:"image" doc:"A reference to it"`
	Name  string `json:"name"`
}

// Package is an installed package of an image.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Kernel is a kernel that VMs can boot.
type Kernel struct {
	Name      string    `json:"name"`
	Version   string    `json:"version"`
	Arch      string    `json:"arch"`
	Source    string    `json:"source"`
	Bytes     int64     `json:"bytes"`
	SHA256    string    `json:"sha256"`
	Modules   bool      `json:"modules" doc:"Whether it came with modules"`
	Path      string    `json:"path"`
	CreatedAt time.Time `json:"created_at"`
	UsedBy    []string  `json:"used_by"`
}

// ImportKernel asks to take a kernel file of the host's into banger.
type ImportKernel struct {
	Name       string `json:"name" doc:"A DNS label"`
	Path       string `json:"path" doc:"Absolute path of a vmlinuz or vmlinux on the host"`
	ModulesDir string `json:"modules_dir,omitempty" doc:"Absolute path of its lib/modules/VERSION directory"`
}

// Runtime tells where the runtime bundle is.
type Runtime struct {
	Path string `json:"path"`
	Rule string `json:"rule" doc:"The rule by which it was found"`
}

// BuildRuntime asks to make what the runtime bundle lacks.
type BuildRuntime struct {
	Only  []string `json:"only,omitempty" doc:"Artefacts to build, by name; all if empty"`
	Force bool     `json:"force,omitempty" doc:"Build even what is there"`
}

// FetchRuntime asks for a packed bundle in the place of the one there is.
type FetchRuntime struct {
	URL            string `json:"url,omitempty" doc:"Where it is, https or file; as configured if empty"`
	SHA256         string `json:"sha256,omitempty" doc:"Of the archive; if empty it is fetched from the URL with .sha256 at its end"`
	Bytes          int64  `json:"bytes,omitempty" doc:"Size of the archive, if that is known"`
	Key            string `json:"key,omitempty" doc:"The minisign public key that must have signed it, beside the one configured"`
	AllowDowngrade bool   `json:"allow_downgrade,omitempty" doc:"Take it even if it is older than the one there is"`
	DropOld        bool   `json:"drop_old,omitempty" doc:"Let go of images of earlier bundles that no disk of this daemon's is based on; another daemon's may be"`
}

// InstallRuntime asks for a copy of a bundle in the place of the one there is.
type InstallRuntime struct {
	Dir            string `json:"dir" doc:"The bundle's directory on the host, absolute"`
	AllowDowngrade bool   `json:"allow_downgrade,omitempty" doc:"Take it even if it is older than the one there is"`
	DropOld        bool   `json:"drop_old,omitempty" doc:"Let go of images of earlier bundles that no disk of this daemon's is based on; another daemon's may be"`
}

// Daemon describes the running daemon.
type Daemon struct {
	Version   string    `json:"version"`
	PID       int       `json:"pid"`
	StartedAt time.Time `json:"started_at"`
	StateDir  string    `json:"state_dir"`
	Socket    string    `json:"socket"`
	VMs       int       `json:"vms"`
	Running   int       `json:"running"`
	Notes     []string  `json:"notes,omitempty" doc:"What it met at its start that its user should know"`
}

// Check is one finding of the doctor's.
type Check struct {
	Name   string `json:"name"`
	Status string `json:"status" enum:"ok,warning,failed"`
	Detail string `json:"detail" doc:"What was found, as a sentence"`
	Hint   string `json:"hint,omitempty" doc:"What to do about it"`
	// Fix is a command, word by word, that mends it and takes nothing away from anyone.
	Fix []string `json:"fix,omitempty" doc:"The command that mends it, word by word"`
}

// SSH is what an SSH client needs to reach VMs.
type SSH struct {
	IdentityFile string   `json:"identity_file" doc:"Private key that every VM accepts"`
	HostKeys     []string `json:"host_keys" doc:"known_hosts lines of all VMs"`
}

// Operation is work under way in the daemon.
type Operation struct {
	ID   string `json:"id"`
	Kind string `json:"kind"`
	VM   string `json:"vm,omitempty" doc:"Id of the VM it is about"`
	Name string `json:"name,omitempty" doc:"Name of that VM"`
}

// Event is a step of an operation. The last one of a stream has Finished set.
type Event struct {
	Stage    string `json:"stage,omitempty" doc:"What is being done now"`
	Done     int64  `json:"done,omitempty" doc:"Progress within the stage, of Total"`
	Total    int64  `json:"total,omitempty"`
	Warning  string `json:"warning,omitempty"`
	Finished bool   `json:"finished,omitempty"`
	Error    *Error `json:"error,omitempty" doc:"Set if it failed"`
	VM       *VM    `json:"vm,omitempty" doc:"The VM as the operation left it"`
	Image    string `json:"image,omitempty" doc:"Name of the image that the operation has made, where it was for the daemon to choose"`
}

// Transition is one step of a VM's life.
type Transition struct {
	Seq    int64     `json:"seq" doc:"Ever growing; ask for what came after it"`
	At     time.Time `json:"at"`
	VM     string    `json:"vm" doc:"Id of the VM; empty: it is about the host"`
	Name   string    `json:"name"`
	From   State     `json:"from" doc:"Empty: it is new"`
	To     State     `json:"to" doc:"Empty: it is gone"`
	Cause  string    `json:"cause" doc:"What brought it about"`
	Reason string    `json:"reason,omitempty" doc:"Why it failed, or why it stopped if nobody asked"`
}

// Stats is what a running VM takes and does. Counters run from its start.
type Stats struct {
	VM         string      `json:"vm" doc:"Its id"`
	Name       string      `json:"name"`
	At         time.Time   `json:"at"`
	CPUs       int         `json:"cpus"`
	CPUSeconds float64     `json:"cpu_seconds" doc:"Of the host's, taken by the VMM"`
	PSSBytes   int64       `json:"pss_bytes" doc:"The host's memory that it takes; what several share is divided among them"`
	DiskBytes  int64       `json:"disk_bytes" doc:"Bytes of the host's that its disk alone takes"`
	ReadBytes  int64       `json:"read_bytes" doc:"Read from the host's disks"`
	WriteBytes int64       `json:"write_bytes" doc:"Written to the host's disks"`
	Guest      *GuestStats `json:"guest" doc:"What the guest says of itself; null if it does not answer or is paused"`

	Balloon *BalloonStats `json:"balloon,omitempty" doc:"What the driver of its balloon tells of its memory; Firecracker only"`
	Devices *DeviceStats  `json:"devices,omitempty" doc:"What the VMM counts, since the VM's start or the daemon's, whichever is later; Firecracker only"`
}

// BalloonStats is what the driver of a guest's balloon tells of its memory, some seconds ago.
type BalloonStats struct {
	HeldBytes       int64 `json:"held_bytes" doc:"Taken from the guest"`
	TotalBytes      int64 `json:"total_bytes"`
	FreeBytes       int64 `json:"free_bytes"`
	AvailableBytes  int64 `json:"available_bytes"`
	CachedBytes     int64 `json:"cached_bytes" doc:"Of disks, which can be had back at once"`
	SwappedInBytes  int64 `json:"swapped_in_bytes"`
	SwappedOutBytes int64 `json:"swapped_out_bytes"`
	MajorFaults     int64 `json:"major_faults"`
	MinorFaults     int64 `json:"minor_faults"`
}

// DeviceStats is what a VMM counts of a VM's devices.
type DeviceStats struct {
	DiskReadBytes       int64 `json:"disk_read_bytes"`
	DiskWriteBytes      int64 `json:"disk_write_bytes"`
	DiskThrottled       int64 `json:"disk_throttled" doc:"Times that its limit held the disk up"`
	DiskFailures        int64 `json:"disk_failures"`
	NetRxBytes          int64 `json:"net_rx_bytes"`
	NetTxBytes          int64 `json:"net_tx_bytes"`
	NetFailures         int64 `json:"net_failures"`
	ConsoleDroppedBytes int64 `json:"console_dropped_bytes" doc:"That came faster than a console's are let through"`
	ForbiddenCalls      int64 `json:"forbidden_calls" doc:"System calls that the VMM's own filter stopped"`
}

// GuestStats is what a guest says of itself.
type GuestStats struct {
	CPUSeconds           float64 `json:"cpu_seconds"`
	Load1                float64 `json:"load1"`
	MemoryTotalBytes     int64   `json:"memory_total_bytes"`
	MemoryAvailableBytes int64   `json:"memory_available_bytes"`
	RootTotalBytes       int64   `json:"root_total_bytes"`
	RootFreeBytes        int64   `json:"root_free_bytes"`
	RxBytes              int64   `json:"rx_bytes"`
	TxBytes              int64   `json:"tx_bytes"`
}

// Finding is a host object of banger's, or the lack of one.
type Finding struct {
	Kind    string `json:"kind" doc:"directory, process, socket, mount, loop, dm, hosts line, link, nft, sysctl, template; or disk or machine, where one is lacking"`
	Name    string `json:"name" doc:"A path, a process id, a device"`
	VM      string `json:"vm" doc:"Id of the VM that it belongs to, as far as can be told"`
	Problem string `json:"problem" doc:"Empty: all is as it should be"`
}

// Verdict is what is wrong with something that was verified; nothing is if Problem is empty.
type Verdict struct {
	What    string `json:"what"`
	Problem string `json:"problem"`
	Hint    string `json:"hint,omitempty"`
}

// File is a file of the host's that nothing needs any more.
type File struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes" doc:"What it takes on the disk"`
}

// DNS tells how the names of VMs are served and made known to the host.
type DNS struct {
	Domain    string        `json:"domain" doc:"Under which the names are"`
	Publisher string        `json:"publisher" enum:"resolved,hosts,exec,none" doc:"What makes them known to the host's programs"`
	Why       string        `json:"why" doc:"Why it was chosen"`
	Problem   string        `json:"problem,omitempty" doc:"Why its last try failed"`
	Hint      string        `json:"hint,omitempty" doc:"What to do about that"`
	Listeners []DNSListener `json:"listeners"`
	Upstreams []string      `json:"upstreams" doc:"Name servers that guests' other questions are forwarded to"`
	Records   int           `json:"records" doc:"How many names there are"`
}

// DNSListener is an address on which names are served.
type DNSListener struct {
	Address string `json:"address"`
	For     string `json:"for" enum:"host,guests"`
	Problem string `json:"problem,omitempty" doc:"Why it does not answer"`
}

// DNSRecord is the name of a running VM. What is below the name means it too.
type DNSRecord struct {
	Name string `json:"name"`
	IP   string `json:"ip"`
	VM   string `json:"vm" doc:"Id of the VM"`
}

// Error is what a failed call returns: what failed and why, and what to do next.
type Error struct {
	Code    string `json:"code" enum:"not_found,conflict,invalid,busy,unavailable,internal"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Message }
