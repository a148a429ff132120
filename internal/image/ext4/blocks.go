package ext4

import "math/bits"

// blocks knows which blocks of a filesystem in the making are taken. It grows by flex
// groups, and takes from the beginning of each what mkfs.ext4 is going to put there: so
// files can be written before it is known how large the filesystem will be.
type blocks struct {
	taken []uint64 // a bit a block
	next  uint64   // where the search goes on
	limit uint64   // blocks that there may be
	count uint64   // blocks that files have
}

const flexBlocks = flexGroups * groupBlocks

// tables is the end of mkfs's part of a flex group that begins with a group with a
// superblock: that, the descriptors, two bitmaps a group, and the inode tables. In the
// first one the root directory, lost+found and the list of reserved blocks follow.
const (
	tables      = 1 + gdtBlocks + flexGroups*(2+tableBlocks)
	firstTables = tables + 16
)

func (b *blocks) grow() {
	flex := uint64(len(b.taken)) * 64 / flexBlocks
	b.taken = append(b.taken, make([]uint64, flexBlocks/64)...)
	start := flex * flexBlocks
	if flex == 0 {
		b.mark(0, firstTables)
	} else {
		b.mark(start, tables)
	}
	for group := flex*flexGroups + 1; group < (flex+1)*flexGroups; group++ {
		if hasSuper(group) {
			b.mark(group*groupBlocks, 1+gdtBlocks)
		}
	}
}

func (b *blocks) mark(start, n uint64) {
	for i := start; i < start+n; i++ {
		b.taken[i/64] |= 1 << (i % 64)
	}
}

func (b *blocks) isTaken(block uint64) bool {
	return block < uint64(len(b.taken))*64 && b.taken[block/64]&(1<<(block%64)) != 0
}

// take returns a run of at most want free blocks, n of them; 0 if there is none.
func (b *blocks) take(want uint64) (start, n uint64) {
	start, ok := b.find(b.next, b.limit)
	if !ok {
		if start, ok = b.find(0, min(b.next, b.limit)); !ok {
			return 0, 0
		}
	}
	for n = 1; n < want && start+n < b.limit && start+n < uint64(len(b.taken))*64 && !b.isTaken(start+n); n++ {
	}
	b.mark(start, n)
	b.next = start + n
	b.count += n
	return start, n
}

// find returns the first free block of [from, end).
func (b *blocks) find(from, end uint64) (uint64, bool) {
	for at := from; at < end; {
		if at/64 >= uint64(len(b.taken)) {
			b.grow()
		}
		free := ^b.taken[at/64] >> (at % 64)
		if free != 0 {
			at += uint64(bits.TrailingZeros64(free))
			return at, at < end
		}
		at = (at/64 + 1) * 64
	}
	return 0, false
}

func (b *blocks) release(start, n uint64) {
	for i := start; i < start+n; i++ {
		b.taken[i/64] &^= 1 << (i % 64)
	}
	b.count -= n
	b.next = min(b.next, start)
}

// end is the block behind the last that is taken by a file.
func (b *blocks) end() uint64 {
	for at := uint64(len(b.taken)) * 64; at > 0; at-- {
		word := (at - 1) / 64
		if b.taken[word] == 0 {
			at = word*64 + 1
			continue
		}
		if b.isTaken(at-1) && !b.reserved(at-1) {
			return at
		}
	}
	return 0
}

func (b *blocks) reserved(block uint64) bool {
	group, within := block/groupBlocks, block%groupBlocks
	switch {
	case group == 0:
		return within < firstTables
	case group%flexGroups == 0:
		return within < tables
	}
	return hasSuper(group) && within < 1+gdtBlocks
}
