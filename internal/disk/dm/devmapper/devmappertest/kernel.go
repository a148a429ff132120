// Package devmappertest owns a device-mapper in memory, for tests on hosts that have none:
// it keeps devices as the kernel does and holds on to the loop devices below them, but moves
// no data.
package devmappertest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Major is that of the kernel's devices.
const Major = 253

// Kernel is a device-mapper. Its Ioctl serves devmapper.New.
type Kernel struct {
	mu      sync.Mutex
	devices []*device
	next    uint32
	fail    string // label of the request that fails
	failed  error
}

type device struct {
	name, uuid   string
	minor        uint32
	opened       int // by Open
	readOnly     bool
	status       string
	live, loaded []target
	held         []*os.File // loop devices below
	below        []*device
}

type target struct {
	start, sectors uint64
	kind, params   string
}

// Fail makes one kind of request fail from now on: create, load, resume, remove, list; ""
// for none.
func (k *Kernel) Fail(label string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail, k.failed = label, err
}

// Open opens a device, or with -1 closes it, as a VMM would.
func (k *Kernel) Open(name string, n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.find(name); d != nil {
		d.opened += n
	}
}

// SetStatus sets what a device's targets say of themselves.
func (k *Kernel) SetStatus(name, params string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.find(name).status = params
}

// Reboot loses every device, as a host's restart does.
func (k *Kernel) Reboot() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.devices {
		d.letGo()
	}
	k.devices = nil
}

// String lists the devices with their live tables, oldest first. Devices below are shown
// by name, loop devices by the name of their file.
func (k *Kernel) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var b strings.Builder
	for _, d := range k.devices {
		mode := "rw"
		if d.readOnly {
			mode = "ro"
		}
		fmt.Fprintf(&b, "%s %s\n", d.name, mode)
		for _, t := range d.live {
			fmt.Fprintln(&b, strings.TrimRight(fmt.Sprintf("  %d %d %s %s", t.start, t.sectors, t.kind, k.shown(t.params)), " "))
		}
	}
	return b.String()
}

func (k *Kernel) shown(params string) string {
	words := strings.Fields(params)
	for i, w := range words {
		var major, minor uint32
		if n, _ := fmt.Sscanf(w, "%d:%d", &major, &minor); n != 2 {
			continue
		}
		if major == Major {
			words[i] = k.byMinor(minor).name
		} else if file, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", minor)); err == nil {
			words[i] = filepath.Base(strings.TrimSpace(string(file)))
		}
	}
	return strings.Join(words, " ")
}

// Ioctl serves one request.
func (k *Kernel) Ioctl(request uint, buf []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var h unix.DmIoctl
	if err := binary.Read(bytes.NewReader(buf), binary.NativeEndian, &h); err != nil {
		return err
	}
	if h.Version[0] != 4 || int(h.Data_size) != len(buf) || int(h.Data_start) > len(buf) {
		return unix.EINVAL
	}
	labels := map[uint]string{unix.DM_DEV_CREATE: "create", unix.DM_TABLE_LOAD: "load", unix.DM_DEV_SUSPEND: "resume",
		unix.DM_DEV_REMOVE: "remove", unix.DM_LIST_DEVICES: "list"}
	if k.fail != "" && labels[request] == k.fail {
		return k.failed
	}
	data, err := k.serve(request, &h, buf[h.Data_start:])
	if err != nil {
		return err
	}
	size := int(unsafe.Sizeof(h))
	h.Data_start = uint32(size)
	if size+len(data) > len(buf) {
		h.Flags |= unix.DM_BUFFER_FULL_FLAG
		data = nil
	}
	h.Data_size = uint32(size + len(data))
	if len(data) == 0 && request != unix.DM_LIST_DEVICES {
		h.Data_size = uint32(unsafe.Offsetof(h.Data)) // as the kernel has it
	}
	out, err := binary.Append(nil, binary.NativeEndian, h)
	if err != nil {
		return err
	}
	copy(buf, append(out, data...))
	return nil
}

func (k *Kernel) serve(request uint, h *unix.DmIoctl, data []byte) ([]byte, error) {
	name := text(h.Name[:])
	d := k.find(name)
	switch request {
	case unix.DM_DEV_CREATE:
		if d != nil {
			return nil, unix.EBUSY
		}
		k.devices = append(k.devices, &device{name: name, uuid: text(h.Uuid[:]), minor: k.next})
		k.next++
		return nil, nil
	case unix.DM_LIST_DEVICES:
		return k.list(), nil
	case unix.DM_GET_TARGET_VERSION:
		if !slices.Contains([]string{"linear", "zero", "snapshot"}, name) {
			return nil, unix.EINVAL
		}
		return make([]byte, 16), nil
	}
	if d == nil {
		return nil, unix.ENXIO
	}
	switch request {
	case unix.DM_TABLE_LOAD:
		return nil, k.load(d, h, data)
	case unix.DM_DEV_SUSPEND:
		if h.Flags&unix.DM_SUSPEND_FLAG != 0 {
			return nil, unix.EINVAL // nobody asks for it
		}
		if d.loaded != nil {
			d.live, d.loaded = d.loaded, nil
		}
	case unix.DM_DEV_REMOVE:
		if k.openCount(d) > 0 {
			return nil, unix.EBUSY
		}
		d.letGo()
		k.devices = slices.DeleteFunc(k.devices, func(x *device) bool { return x == d })
		return nil, nil
	}
	k.describe(d, h)
	if request == unix.DM_TABLE_STATUS {
		return status(d, h), nil
	}
	return nil, nil
}

func (k *Kernel) describe(d *device, h *unix.DmIoctl) {
	h.Dev, h.Open_count, h.Flags = unix.Mkdev(Major, d.minor), int32(k.openCount(d)), 0
	if d.live != nil {
		h.Flags |= unix.DM_ACTIVE_PRESENT_FLAG
	}
	if d.readOnly {
		h.Flags |= unix.DM_READONLY_FLAG
	}
}

// load reads a table and takes hold of what is below it.
func (k *Kernel) load(d *device, h *unix.DmIoctl, data []byte) error {
	end := uint64(0)
	for range h.Target_count {
		var spec unix.DmTargetSpec
		if err := binary.Read(bytes.NewReader(data), binary.NativeEndian, &spec); err != nil {
			return unix.EINVAL
		}
		t := target{spec.Sector_start, spec.Length, text(spec.Target_type[:]), text(data[unsafe.Sizeof(spec):])}
		if t.start != end || spec.Next%8 != 0 || int(spec.Next) > len(data) {
			return unix.EINVAL // targets lie without a gap
		}
		if err := k.hold(d, t); err != nil {
			return err
		}
		d.loaded = append(d.loaded, t)
		end, data = t.start+t.sectors, data[spec.Next:]
	}
	d.readOnly = h.Flags&unix.DM_READONLY_FLAG != 0
	return nil
}

func (k *Kernel) hold(d *device, t target) error {
	for _, w := range strings.Fields(t.params) {
		var major, minor uint32
		if n, _ := fmt.Sscanf(w, "%d:%d", &major, &minor); n != 2 {
			continue
		}
		if major == Major {
			below := k.byMinor(minor)
			if below == nil || size(below) < t.sectors {
				return unix.EINVAL
			}
			d.below = append(d.below, below)
			continue
		}
		f, err := os.Open(fmt.Sprintf("/dev/loop%d", minor))
		if err != nil {
			return unix.ENXIO
		}
		d.held = append(d.held, f)
	}
	return nil
}

func size(d *device) (sectors uint64) {
	for _, t := range d.live {
		sectors += t.sectors
	}
	return sectors
}

func (d *device) letGo() {
	for _, f := range d.held {
		f.Close() // it was only held
	}
}

func (k *Kernel) find(name string) *device {
	for _, d := range k.devices {
		if d.name == name {
			return d
		}
	}
	return nil
}

func (k *Kernel) byMinor(minor uint32) *device {
	for _, d := range k.devices {
		if d.minor == minor {
			return d
		}
	}
	return nil
}

func (k *Kernel) openCount(d *device) int {
	n := d.opened
	for _, x := range k.devices {
		if slices.Contains(x.below, d) {
			n++
		}
	}
	return n
}

func (k *Kernel) list() []byte {
	var all []byte
	for i, d := range k.devices {
		entry := binary.NativeEndian.AppendUint64(nil, unix.Mkdev(Major, d.minor))
		entry = append(entry, 0, 0, 0, 0)
		entry = append(append(entry, d.name...), 0)
		entry = append(entry, make([]byte, (8-len(entry)%8)%8)...)
		if i < len(k.devices)-1 {
			binary.NativeEndian.PutUint32(entry[8:], uint32(len(entry)))
		}
		all = append(all, entry...)
	}
	return all
}

// status gives what each target says of itself.
func status(d *device, h *unix.DmIoctl) (all []byte) {
	for _, t := range d.live {
		spec := unix.DmTargetSpec{Sector_start: t.start, Length: t.sectors}
		copy(spec.Target_type[:], t.kind)
		params := append([]byte(d.status), 0)
		params = append(params, make([]byte, (8-len(params)%8)%8)...)
		spec.Next = uint32(len(all) + int(unsafe.Sizeof(spec)) + len(params))
		all, _ = binary.Append(all, binary.NativeEndian, spec)
		all = append(all, params...)
	}
	h.Target_count = uint32(len(d.live))
	return all
}

func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
