// Command guestio reads and writes a file in a guest, past its page cache, and prints how
// many seconds that took.
package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	large = 1 << 20 // of sequential transfers, in bytes
	small = 4 << 10 // of random ones
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: guestio seq-write|rand-write|rand-read FILE BYTES")
		os.Exit(2)
	}
	bytes, err := strconv.ParseInt(os.Args[3], 10, 64)
	if err == nil {
		err = run(os.Args[1], os.Args[2], bytes)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guestio:", err)
		os.Exit(1)
	}
}

// span is the length of the file that random transfers are spread over, in bytes.
const span = 512 << 20

func run(what, path string, bytes int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	unit, at := int64(small), random(bytes/small)
	if what == "seq-write" {
		unit, at = large, func(i int64) int64 { return i * large }
	}
	if what == "rand-write" { // the filesystem's own blocks are not to be counted
		if err := unix.Fallocate(int(f.Fd()), 0, 0, span); err != nil {
			return err
		}
	}
	buf := aligned(int(unit))
	transfer := f.WriteAt
	if what == "rand-read" {
		transfer = f.ReadAt
	} else if err := fillUp(buf); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	begin := time.Now()
	for i := range bytes / unit {
		if _, err := transfer(buf, at(i)); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	fmt.Println(time.Since(begin).Seconds())
	return nil
}

// random gives n different places in the span, the same ones each time.
func random(n int64) func(int64) int64 {
	all := rand.New(rand.NewPCG(1, 2)).Perm(span / small)
	return func(i int64) int64 { return int64(all[i%min(n, int64(len(all)))]) * small }
}

// aligned returns n bytes where direct I/O can have them.
func aligned(n int) []byte {
	b := make([]byte, n+small)
	skip := small - int(uintptr(unsafe.Pointer(&b[0]))%small)
	return b[skip : skip+n]
}

func fillUp(b []byte) error {
	_, err := unix.Getrandom(b, 0)
	return err
}
