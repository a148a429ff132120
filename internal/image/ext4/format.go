package ext4

import (
	"hash/crc32"
	"time"
)

// The parts of the format that Writer and Reader share. The kernel's description is
// Documentation/filesystems/ext4; all numbers are little-endian.
const (
	groupBlocks    = 8 * blockBytes  // blocks of a group: as many as a block has bits
	inodesPerGroup = groupBlocks / 4 // mkfs's own choice for disks of usual size; a small one keeps its ratio as it grows
	tableBlocks    = inodesPerGroup * inodeBytes / blockBytes
	flexGroups     = 16                                                  // groups whose tables lie together
	gdtBlocks      = growBlocks / groupBlocks / (blockBytes / descBytes) // in use or reserved
	descBytes      = 64

	superOffset = 1024
	superMagic  = 0xEF53

	rootInode      = 2
	lostFoundInode = 11 // the first that is not reserved

	extentsFlag = 0x80000
	indexFlag   = 0x1000

	extentMagic     = 0xF30A
	extentsPerBlock = (blockBytes - 12) / 12
	maxExtent       = 1 << 15 // blocks

	maxName  = 255
	maxLinks = 65000
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum is the format's CRC32C: without the inversions at either end.
func sum(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli, p) }

func sum32(seed, v uint32) uint32 {
	return sum(seed, []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)})
}

// hasSuper tells whether a group has a copy of the superblock: 0, 1, and the powers of 3, 5
// and 7.
func hasSuper(group uint64) bool {
	if group <= 1 {
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// The format holds times from 1901 to 2446, as 34 bits of seconds and 30 of nanoseconds.
const (
	minTime = -1 << 31
	maxTime = 1<<34 - 1<<31 - 1
)

func encodeTime(t time.Time) (seconds, extra uint32) {
	s := min(max(t.Unix(), minTime), maxTime)
	return uint32(s), uint32((s-int64(int32(s)))>>32)&3 | uint32(t.Nanosecond())<<2
}

func decodeTime(seconds, extra uint32) time.Time {
	return time.Unix(int64(int32(seconds))+int64(extra&3)<<32, int64(extra>>2))
}
