package guestd

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/guest/proto"
)

// Linux is the System of a running guest.
type Linux struct {
	restart bool // the machine's only end is a restart

	oom *os.File // /proc/self/oom_score_adj, nil where it may not be changed
	mu  sync.Mutex
	n   int // starts under way

	// bare are the interfaces that Shed has left, by their hardware addresses, unless SetLinks
	// was called since.
	bare map[string]bareLink
}

// OOM scores: -1000 is never killed, 0 is the default.
const (
	oomNever   = "-1000"
	oomDefault = "0"
)

// NewLinux protects this process from the OOM killer, if it may, and returns the System.
func NewLinux() *Linux {
	l := &Linux{}
	if cmdline, err := os.ReadFile("/proc/cmdline"); err == nil {
		l.restart = parseBootArgs(string(cmdline)).restart
	}
	f, err := os.OpenFile("/proc/self/oom_score_adj", os.O_WRONLY, 0)
	if err != nil {
		return l
	}
	if _, err := f.WriteAt([]byte(oomNever), 0); err != nil {
		f.Close()
		return l
	}
	l.oom = f
	return l
}

// Exposed lowers the protection while processes are started: a child inherits the score
// that its parent has at that moment.
func (l *Linux) Exposed(start func() error) error {
	if l.oom == nil {
		return start()
	}
	l.mu.Lock()
	if l.n++; l.n == 1 {
		l.oom.WriteAt([]byte(oomDefault), 0)
	}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.n--; l.n == 0 {
			l.oom.WriteAt([]byte(oomNever), 0)
		}
	}()
	return start()
}

// SetHostname sets the kernel's host name.
func (l *Linux) SetHostname(name string) error {
	return os.NewSyscallError("sethostname", unix.Sethostname([]byte(name)))
}

// Now reads the clock.
func (l *Linux) Now() time.Time { return time.Now() }

// SetTime sets the clock.
func (l *Linux) SetTime(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return os.NewSyscallError("clock_settime", unix.ClockSettime(unix.CLOCK_REALTIME, &ts))
}

// AddEntropy credits random bytes to the kernel's pool and has it used at once.
func (l *Linux) AddEntropy(random []byte) error {
	const pool = "/dev/random"
	fd, err := unix.Open(pool, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: pool, Err: err}
	}
	defer unix.Close(fd)
	// struct rand_pool_info: bits of entropy, size in bytes, the bytes.
	info := make([]byte, 8+len(random))
	binary.NativeEndian.PutUint32(info, uint32(8*len(random)))
	binary.NativeEndian.PutUint32(info[4:], uint32(len(random)))
	copy(info[8:], random)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0])))
	if errno == 0 {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.RNDRESEEDCRNG, 0)
	}
	if errno != 0 {
		return &os.PathError{Op: "ioctl", Path: pool, Err: errno}
	}
	return nil
}

// FIFREEZE and FITHAW, _IOWR('X', 119, int) and 120.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// Freeze syncs the filesystem at root and holds all writes to it until Thaw.
func (l *Linux) Freeze(root string) error { return fileIoctl(root, fiFreeze, nil) }

// Thaw undoes Freeze.
func (l *Linux) Thaw(root string) error { return fileIoctl(root, fiThaw, nil) }

// ext4ResizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64): grow to that many blocks.
const ext4ResizeFS = 0x40086610

// GrowRoot grows an ext4 filesystem online.
func (l *Linux) GrowRoot(root string) (proto.GrowRoot, error) {
	var grown proto.GrowRoot
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return grown, &os.PathError{Op: "stat", Path: root, Err: err}
	}
	device, err := blockDevice(st.Dev)
	if err != nil {
		return grown, err
	}
	before, err := readExt4(device.path)
	if err != nil {
		return grown, err
	}
	grown.OldBytes, grown.NewBytes = before.bytes(), before.bytes()
	blocks := device.bytes / before.blockSize
	if blocks <= before.blocks {
		return grown, nil
	}
	if err := fileIoctl(root, ext4ResizeFS, unsafe.Pointer(&blocks)); err != nil {
		return grown, errs.New(errs.Internal, "grow the root filesystem from %d to %d bytes",
			before.bytes(), device.bytes).Because(err)
	}
	after, err := readExt4(device.path)
	if err != nil {
		return grown, err
	}
	grown.NewBytes = after.bytes()
	return grown, nil
}

type block struct {
	path  string
	bytes int64
}

// blockDevice finds the device with the number dev.
func blockDevice(dev uint64) (block, error) {
	sys := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))
	target, err := os.Readlink(sys)
	if err != nil {
		return block{}, errs.New(errs.Unavailable, "the root filesystem is on no block device").Because(err)
	}
	text, err := os.ReadFile(sys + "/size")
	if err != nil {
		return block{}, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return block{}, fmt.Errorf("%s/size: %w", sys, err)
	}
	return block{path: "/dev/" + filepath.Base(target), bytes: sectors * 512}, nil
}

// ext4 is what the superblock says of the filesystem's size.
type ext4 struct {
	blocks    int64
	blockSize int64
}

func (e ext4) bytes() int64 { return e.blocks * e.blockSize }

// Of the superblock, 1024 bytes into the device.
const (
	ext4Offset     = 1024
	ext4BlocksLow  = 0x04
	ext4LogSize    = 0x18 // block size is 1024 << this
	ext4MagicAt    = 0x38
	ext4Magic      = 0xEF53
	ext4Incompat   = 0x60
	ext4Is64Bit    = 0x80
	ext4BlocksHigh = 0x150
)

func readExt4(device string) (ext4, error) {
	f, err := os.Open(device)
	if err != nil {
		return ext4{}, err
	}
	defer f.Close()
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, ext4Offset); err != nil {
		return ext4{}, err
	}
	return parseExt4(sb)
}

func parseExt4(sb []byte) (ext4, error) {
	le := binary.LittleEndian
	logSize := le.Uint32(sb[ext4LogSize:])
	if le.Uint16(sb[ext4MagicAt:]) != ext4Magic || logSize > 6 {
		return ext4{}, errs.New(errs.Unavailable, "the root filesystem is not ext4, and can't be grown")
	}
	blocks := int64(le.Uint32(sb[ext4BlocksLow:]))
	if le.Uint32(sb[ext4Incompat:])&ext4Is64Bit != 0 {
		blocks |= int64(le.Uint32(sb[ext4BlocksHigh:])) << 32
	}
	return ext4{blocks: blocks, blockSize: 1024 << logSize}, nil
}

func fileIoctl(path string, request uint, arg unsafe.Pointer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return ioctl(f, request, arg)
}

func ioctl(f *os.File, request uint, arg unsafe.Pointer) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	if err := raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg))
	}); err != nil {
		return err
	}
	if errno != 0 {
		return &os.PathError{Op: "ioctl", Path: f.Name(), Err: errno}
	}
	return nil
}
