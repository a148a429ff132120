package devmapper

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The requests and their structures are those of the kernel's linux/dm-ioctl.h.
const (
	controlPath  = "/dev/mapper/control"
	controlMajor = 10 // misc

	headerBytes = int(unsafe.Sizeof(unix.DmIoctl{}))
	specBytes   = int(unsafe.Sizeof(unix.DmTargetSpec{}))
	firstBuffer = 16 << 10 // bytes for an answer
	maxBuffer   = 16 << 20

	// udevFlags, in the upper half of a request's event number, reach udev's rules: they
	// make it keep its hands off. A guest's disk must not be scanned for filesystems or
	// have its volume groups activated on the host.
	udevFlags = (udevNoSubsystem | udevNoDisk | udevNoOther | udevNoFallback | udevPrimary) << 16

	udevNoSubsystem = 0x02
	udevNoDisk      = 0x04
	udevNoOther     = 0x08
	udevNoFallback  = 0x20
	udevPrimary     = 0x40
)

// header is what a request says before its data.
type header struct {
	name, uuid string
	flags      uint32
	event      uint32
	targets    uint32
}

// call makes a request and returns the header and the data of the answer.
func (c *Control) call(request uint, h header, data []byte) (out unix.DmIoctl, answer []byte, err error) {
	for size := firstBuffer; ; size *= 4 {
		buf, err := encode(h, data, size)
		if err != nil {
			return out, nil, err
		}
		if err := c.ioctl(request, buf); err != nil {
			return out, nil, err
		}
		if err := binary.Read(bytes.NewReader(buf), binary.NativeEndian, &out); err != nil {
			return out, nil, err
		}
		if out.Flags&unix.DM_BUFFER_FULL_FLAG != 0 && size < maxBuffer {
			continue
		}
		if out.Data_size <= out.Data_start { // the kernel counts to the end of the header's names where it has none
			return out, nil, nil
		}
		if int64(out.Data_size) > int64(len(buf)) {
			return out, nil, fmt.Errorf("device-mapper answers with data from %d to %d", out.Data_start, out.Data_size)
		}
		return out, buf[out.Data_start:out.Data_size], nil
	}
}

func encode(h header, data []byte, size int) ([]byte, error) {
	in := unix.DmIoctl{
		Version:   [3]uint32{4, 0, 0},
		Data_size: uint32(max(size, headerBytes+len(data))), Data_start: uint32(headerBytes),
		Target_count: h.targets, Flags: h.flags, Event_nr: h.event,
	}
	if len(h.name) >= len(in.Name) || len(h.uuid) >= len(in.Uuid) {
		return nil, fmt.Errorf("device-mapper has no room for the name %q", h.name)
	}
	copy(in.Name[:], h.name)
	copy(in.Uuid[:], h.uuid)
	b, err := binary.Append(nil, binary.NativeEndian, in)
	if err != nil {
		return nil, err
	}
	b = append(b, data...)
	return append(b, make([]byte, int(in.Data_size)-len(b))...), nil
}

func device(d unix.DmIoctl) Device {
	return Device{
		Name: text(d.Name[:]), Major: unix.Major(d.Dev), Minor: unix.Minor(d.Dev), OpenCount: int(d.Open_count),
		ReadOnly: d.Flags&unix.DM_READONLY_FLAG != 0,
		Live:     d.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0 && d.Flags&unix.DM_SUSPEND_FLAG == 0,
	}
}

// encodeTable lays targets out as the kernel reads a table: each begins at a multiple of 8
// and says how far it is to the next.
func encodeTable(table []Target) []byte {
	var b []byte
	for _, t := range table {
		params := append([]byte(t.Params), 0)
		params = append(params, make([]byte, (8-len(params)%8)%8)...)
		spec := unix.DmTargetSpec{Sector_start: t.Start, Length: t.Sectors, Next: uint32(specBytes + len(params))}
		copy(spec.Target_type[:len(spec.Target_type)-1], t.Type)
		b, _ = binary.Append(b, binary.NativeEndian, spec) // it has a fixed size, so this can't fail
		b = append(b, params...)
	}
	return b
}

// decodeTable reads n targets as the kernel writes them: here each says where the next one
// begins, from the start.
func decodeTable(data []byte, n int) ([]Target, error) {
	var all []Target
	for at := 0; len(all) < n; {
		if at < 0 || len(data)-at < specBytes {
			return nil, errors.New("device-mapper answers with a table that is cut short")
		}
		var spec unix.DmTargetSpec
		if err := binary.Read(bytes.NewReader(data[at:]), binary.NativeEndian, &spec); err != nil {
			return nil, err
		}
		all = append(all, Target{spec.Sector_start, spec.Length, text(spec.Target_type[:]), text(data[at+specBytes:])})
		at = int(spec.Next)
	}
	return all, nil
}

// decodeNames reads a list of devices: number, distance to the next, name.
func decodeNames(data []byte) (names []string, err error) {
	const fixed = 12 // of an entry, in bytes
	for {
		if len(data) == 0 {
			return names, nil
		}
		if len(data) < fixed {
			return nil, errors.New("device-mapper answers with a list that is cut short")
		}
		names = append(names, text(data[fixed:]))
		next := binary.NativeEndian.Uint32(data[8:])
		if next == 0 {
			return names, nil
		}
		if int64(next) >= int64(len(data)) {
			return nil, errors.New("device-mapper answers with a list that is cut short")
		}
		data = data[next:]
	}
}

// text is what stands before the first zero byte.
func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// Host makes requests of this host's kernel. Where it has no device-mapper, or the caller
// is not root, they fail with fs.ErrNotExist or fs.ErrPermission.
func Host(request uint, buf []byte) error {
	// Opening the control loads the module; without it there is nothing to look at.
	looks := request == unix.DM_LIST_DEVICES || request == unix.DM_TABLE_STATUS
	if _, err := os.Stat("/sys/class/misc/device-mapper"); err != nil && looks {
		return err
	}
	f, err := os.OpenFile(controlPath, os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) && makeControl() == nil {
		f, err = os.OpenFile(controlPath, os.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
		return errno
	}
	return nil
}

// makeControl makes the node of a device-mapper that is there and that nobody has made it for.
func makeControl() error {
	misc, err := os.ReadFile("/proc/misc")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(misc)) {
		var minor uint32
		var name string
		if n, _ := fmt.Sscan(line, &minor, &name); n != 2 || name != "device-mapper" {
			continue
		}
		if err := os.MkdirAll("/dev/mapper", 0o755); err != nil {
			return err
		}
		return unix.Mknod(controlPath, unix.S_IFCHR|0o600, int(unix.Mkdev(controlMajor, minor)))
	}
	return os.ErrNotExist
}
