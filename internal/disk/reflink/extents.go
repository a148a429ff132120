package reflink

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctl and its structures are those of the kernel's linux/fiemap.h.
const (
	fsIocFiemap = 0xc020660b

	extentLast   = 0x1
	extentShared = 0x2000
)

type fiemap struct {
	start, length           uint64
	flags, mapped, capacity uint32
	_                       uint32
	extents                 [256]extent
}

type extent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// exclusive yields the extents of a file that no other file shares, in bytes.
func exclusive(f *os.File, yield func(offset, bytes int64)) error {
	var m fiemap
	for at := uint64(0); ; {
		m.start, m.length, m.capacity = at, ^uint64(0)-at, uint32(len(m.extents))
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&m))); errno != 0 {
			return fmt.Errorf("list the extents of %s: %w", f.Name(), errno)
		}
		if m.mapped == 0 {
			return nil
		}
		for _, e := range m.extents[:min(m.mapped, m.capacity)] {
			if e.flags&extentShared == 0 {
				yield(int64(e.logical), int64(e.length))
			}
			at = e.logical + e.length
			if e.flags&extentLast != 0 {
				return nil
			}
		}
	}
}
