package qemu

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkSplit takes 64 MiB of memory from a pipe, as from QEMU, and puts them into a file of the
// host's memory.
func BenchmarkSplit(b *testing.B) {
	const bytes = 64 << 20
	r := new(recorded).begin().part(sectionPart)
	for at := uint64(0); at < bytes; at += pageBytes {
		r.page(ramBlock, at, byte(at/pageBytes)|1)
	}
	stream := r.numbers(uint64(ramEnd)).footer().part(sectionEnd).numbers(uint64(ramEnd)).footer().devices().Bytes()
	b.SetBytes(bytes)
	for b.Loop() {
		fd, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC)
		if err != nil {
			b.Fatal(err)
		}
		memory := os.NewFile(uintptr(fd), "memory")
		out, in, err := os.Pipe()
		if err != nil {
			b.Fatal(err)
		}
		_, _ = unix.FcntlInt(in.Fd(), unix.F_SETPIPE_SZ, pipeBytes)
		go func() {
			_, _ = in.Write(stream)
			in.Close()
		}()
		if err := split(out, memory, io.Discard, bytes); err != nil {
			b.Fatal(err)
		}
		out.Close()
		memory.Close()
	}
}
