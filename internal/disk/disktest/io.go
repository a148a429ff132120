package disktest

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
)

// IO is how a VM would use an attached volume.
type IO interface {
	// Read returns n bytes at offset.
	Read(t *testing.T, a disk.Attached, offset, n int64) []byte

	// Write writes n times the byte fill at offset; what it wrote survives a crash.
	Write(t *testing.T, a disk.Attached, offset, n int64, fill byte) error

	// Discard says that n bytes at offset are not needed any more.
	Discard(t *testing.T, a disk.Attached, offset, n int64)

	// WriteAndDie is Write by a process that is killed with the volume open.
	WriteAndDie(t *testing.T, a disk.Attached, offset, n int64, fill byte)
}

// Raw is the IO of raw files and block devices.
type Raw struct{}

// Read implements IO.
func (Raw) Read(t *testing.T, a disk.Attached, offset, n int64) []byte {
	t.Helper()
	f, err := os.Open(a.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatalf("read %d bytes at %d: %v", n, offset, err)
	}
	return b
}

// Write implements IO.
func (Raw) Write(_ *testing.T, a disk.Attached, offset, n int64, fill byte) error {
	f, err := os.OpenFile(a.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{fill}, int(n)), offset)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// WriteAndDie implements IO: with plain files a process's end is that of its descriptors.
func (r Raw) WriteAndDie(t *testing.T, a disk.Attached, offset, n int64, fill byte) {
	t.Helper()
	if err := r.Write(t, a, offset, n, fill); err != nil {
		t.Fatal(err)
	}
}

// Discard implements IO, as QEMU and Firecracker do with a guest's discards.
func (Raw) Discard(t *testing.T, a disk.Attached, offset, n int64) {
	t.Helper()
	f, err := os.OpenFile(a.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode()&os.ModeDevice != 0 {
		area := [2]int64{offset, n}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&area))); errno != 0 {
			err = errno
		}
	} else {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, n)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		t.Fatalf("discard: %v", err)
	}
}
