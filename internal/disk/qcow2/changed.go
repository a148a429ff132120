package qcow2

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"os"

	"banger/internal/disk"
)

const (
	subclusters     = 32
	subclusterBytes = clusterBytes / subclusters

	// offsetMask selects the place of a table or cluster in the file from an entry.
	offsetMask = 0x00ff_ffff_ffff_fe00

	// l2Compressed marks a cluster in another layout, which QEMU makes only on request.
	l2Compressed = 1 << 62
)

// held yields the ranges of the disk that the overlay holds itself, in bytes. QEMU may be at
// work on it, so together they are those of a moment which perhaps never was.
func held(f *os.File, yield func(offset, bytes int64)) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h, err := parseRaw(f, info.Size())
	if err != nil {
		return err
	}
	l1 := make([]byte, h.L1Size*8)
	if _, err := f.ReadAt(l1, int64(h.L1TableOffset)); err != nil {
		return err
	}
	var l2 []byte // lists of many disks see few with a table
	for i := range int64(h.L1Size) {
		at := binary.BigEndian.Uint64(l1[i*8:]) & offsetMask
		if at == 0 || at > disk.MaxBytes {
			continue
		}
		if l2 == nil {
			l2 = make([]byte, clusterBytes)
		}
		n, err := f.ReadAt(l2, int64(at))
		if err != nil && !errors.Is(err, io.EOF) { // a table at the end may be short
			return err
		}
		heldOfL2(l2[:n], i*l1Covers, yield)
	}
	return nil
}

// heldOfL2 yields what an L2 table for the disk from start on maps to data. Each of its
// entries is followed by a bitmap, whose low half tells which subclusters have some.
func heldOfL2(table []byte, start int64, yield func(offset, bytes int64)) {
	for ; len(table) >= l2EntryBytes; table, start = table[l2EntryBytes:], start+clusterBytes {
		if binary.BigEndian.Uint64(table)&l2Compressed != 0 {
			continue
		}
		allocated := uint32(binary.BigEndian.Uint64(table[8:]))
		for at := 0; allocated>>at != 0; {
			at += bits.TrailingZeros32(allocated >> at)
			n := bits.TrailingZeros32(^(allocated >> at))
			yield(start+int64(at)*subclusterBytes, int64(n)*subclusterBytes)
			at += n
		}
	}
}
