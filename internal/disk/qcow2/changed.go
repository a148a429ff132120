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

// changed adds up how much of the disk the overlay holds itself, in bytes. QEMU may be at
// work on it, so the sum is that of a moment which perhaps never was.
func changed(f *os.File) (bytes int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	h, err := parseRaw(f, info.Size())
	if err != nil {
		return 0, err
	}
	l1 := make([]byte, h.L1Size*8)
	if _, err := f.ReadAt(l1, int64(h.L1TableOffset)); err != nil {
		return 0, err
	}
	l2 := make([]byte, clusterBytes)
	for ; len(l1) > 0; l1 = l1[8:] {
		at := binary.BigEndian.Uint64(l1) & offsetMask
		if at == 0 || at > disk.MaxBytes {
			continue
		}
		n, err := f.ReadAt(l2, int64(at))
		if err != nil && !errors.Is(err, io.EOF) { // a table at the end may be short
			return 0, err
		}
		bytes += l2Bytes(l2[:n])
	}
	return bytes, nil
}

// l2Bytes adds up what an L2 table maps to data. Each of its entries is followed by a
// bitmap, whose low half tells which subclusters have some.
func l2Bytes(table []byte) (bytes int64) {
	for ; len(table) >= l2EntryBytes; table = table[l2EntryBytes:] {
		if binary.BigEndian.Uint64(table)&l2Compressed == 0 {
			allocated := uint32(binary.BigEndian.Uint64(table[8:]))
			bytes += int64(bits.OnesCount32(allocated)) * subclusterBytes
		}
	}
	return bytes
}
