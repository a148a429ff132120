package tree

import (
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// streamed is the size from which a file is read and written at the same time.
	streamed = 4 << 20

	// directBuffer is the size of one direct read or write of such a file, in bytes: each
	// waits for the disk.
	directBuffer = 2 << 20

	// cachedBuffer is the size of one that goes through the page cache. The kernel takes
	// larger pages for larger writes, and those are the ones that a host which is itself a
	// virtual machine may have to fetch first.
	cachedBuffer = 256 << 10

	// inFlight is how many buffers a streamed file has between reader and writer.
	inFlight = 3

	// directAlign is what offsets, lengths and addresses of direct writes are multiples
	// of: the largest logical block of common disks.
	directAlign = 4096
)

// stream copies n bytes of a large file while the next ones are being read. With direct,
// full buffers go past the page cache: under software translation the guest's copy into it
// is what costs most, and the host has a page cache of its own.
func stream(f *os.File, r io.Reader, n int64, direct bool, progress func(int64)) error {
	direct = reserve(f, n) && direct && setDirect(f, true) == nil
	buffers, free, err := mapBuffers(direct)
	if err != nil {
		return err
	}
	defer free()
	idle, full, failed := make(chan []byte, inFlight), make(chan []byte, inFlight), make(chan error, 1)
	for _, b := range buffers {
		idle <- b
	}
	go func() {
		defer close(failed)
		for b := range full {
			if err := writeAligned(f, b, direct); err != nil {
				failed <- err
				return
			}
			idle <- b[:cap(b)]
		}
	}()
	err = feed(r, n, idle, full, failed, progress)
	close(full)
	if werr := <-failed; err == nil { // waits for the writer also where there is no error
		err = werr
	}
	return err
}

// feed reads n bytes into idle buffers and hands them on, until the writer fails.
func feed(r io.Reader, n int64, idle <-chan []byte, full chan<- []byte, failed <-chan error, progress func(int64)) error {
	for n > 0 {
		var b []byte
		select {
		case b = <-idle:
		case err := <-failed:
			return err
		}
		b = b[:min(n, int64(len(b)))]
		if _, err := io.ReadFull(r, b); err != nil {
			return readError(err)
		}
		full <- b
		n -= int64(len(b))
		if progress != nil {
			progress(int64(len(b)))
		}
	}
	return nil
}

// mapBuffers returns buffers, for direct I/O at addresses that it can use.
func mapBuffers(direct bool) (buffers [][]byte, free func(), err error) {
	size := cachedBuffer
	if direct {
		size = directBuffer
	}
	all, err := unix.Mmap(-1, 0, inFlight*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, os.NewSyscallError("mmap", err)
	}
	for b := range slices.Chunk(all, size) {
		buffers = append(buffers, b)
	}
	return buffers, func() { unix.Munmap(all) }, nil
}

// reserve allocates the file's blocks, without which a direct write would have to extend
// the file each time, and ext4 would begin to write out a file that only the page cache
// has as soon as it is renamed over another. It tells whether the filesystem could.
func reserve(f *os.File, n int64) bool {
	return unix.Fallocate(int(f.Fd()), 0, 0, n) == nil
}

// setDirect switches direct writes on or off; not every filesystem has them.
func setDirect(f *os.File, on bool) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	flags &^= unix.O_DIRECT
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags)
	return err
}

// writeAligned writes a buffer. The last one of a direct file may end between two blocks,
// which only the page cache can take.
func writeAligned(f *os.File, b []byte, direct bool) error {
	if direct && len(b)%directAlign != 0 {
		if err := setDirect(f, false); err != nil {
			return err
		}
	}
	_, err := f.Write(b)
	return err
}
