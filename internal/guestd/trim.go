package guestd

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/guest/proto"
)

// fiTrim is FITRIM, _IOWR('X', 121, struct fstrim_range).
const fiTrim = 0xc0185879

// Trim tells the device all that the filesystem at root does not need.
func (l *Linux) Trim(root string) (proto.Trim, error) {
	area := struct{ start, length, least uint64 }{length: ^uint64(0)}
	if err := fileIoctl(root, fiTrim, unsafe.Pointer(&area)); err != nil {
		return proto.Trim{}, err
	}
	// The kernel has put there what it trimmed.
	return proto.Trim{Bytes: int64(area.length)}, syncRoot(root)
}

// syncRoot writes out the filesystem and has its device flush, so that what the host sees of
// the disk is what the guest does.
func syncRoot(root string) error {
	f, err := os.Open(root)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// The ioctl and its structures are those of the kernel's linux/fsmap.h.
const (
	fsIocGetFsmap = 0xc0c0583b

	fsmapLast         = 0x20 // in flags: the last there is
	fsmapSpecialOwner = 0x10 // in flags: owner is one of those below
	fsmapFree         = 1
)

type fsmap struct {
	device, flags                   uint32
	physical, owner, offset, length uint64
	_                               [3]uint64
}

type fsmapHead struct {
	_, _           uint32
	count, entries uint32
	_              [6]uint64
	low, high      fsmap
	found          [2048]fsmap
}

// Free lists what the filesystem at root does not need, as it stands in its bitmaps: a root
// disk has no partitions, so that its offsets are the disk's.
func (l *Linux) Free(root string, offset int64) (proto.Free, error) {
	if offset == 0 {
		if err := syncRoot(root); err != nil {
			return proto.Free{}, err
		}
	}
	all := ^uint32(0)
	h := &fsmapHead{low: fsmap{physical: uint64(offset)}}
	h.count = uint32(len(h.found))
	h.high = fsmap{device: all, flags: all, physical: ^uint64(0), owner: ^uint64(0), offset: ^uint64(0)}
	var free proto.Free
	if err := fileIoctl(root, fsIocGetFsmap, unsafe.Pointer(h)); err != nil {
		return free, err
	}
	for _, m := range h.found[:min(h.entries, h.count)] {
		free.Next = int64(m.physical + m.length)
		if m.flags&fsmapSpecialOwner != 0 && m.owner == fsmapFree {
			free.Ranges = append(free.Ranges, [2]int64{int64(m.physical), int64(m.length)})
		}
		if m.flags&fsmapLast != 0 {
			free.Next = 0
		}
	}
	if h.entries < h.count {
		free.Next = 0
	}
	return free, nil
}
