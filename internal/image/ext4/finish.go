package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/host"
)

// Size is how large a filesystem becomes that a Writer makes.
type Size struct {
	Bytes        int64 // rounded up to groups of 128 MiB; 0: twice what the files take, but roomFree at least beside them
	JournalBytes int64
}

const (
	// roomFree is a guess at what a VM writes; it costs next to nothing until then.
	roomFree = 4 << 30

	halfMD4Version = 1
)

// Finish writes directories, which must be all, and the filesystem's own structures. The
// file is then a filesystem, synced, and the Writer needs no more than to be closed.
func (w *Writer) Finish(ctx context.Context, size Size, directories iter.Seq[Directory]) error {
	var hash hashing
	for i := range hash.seed {
		hash.seed[i] = binary.LittleEndian.Uint32(uuidBytes(w.uuid)[4*i:])
	}
	hash.signed = true // as mkfs.ext4 decides on x86; checked below
	dirs := make([]uint64, w.last/64+1)
	for d := range directories {
		if err := ctx.Err(); err != nil {
			return err
		}
		dirs[d.Inode/64] |= 1 << (d.Inode % 64)
		if err := w.putDirectory(d, hash); err != nil {
			return err
		}
	}
	if err := errors.Join(w.flush(), w.flushRecords()); err != nil {
		return err
	}
	bytes := size.Bytes
	if bytes == 0 {
		bytes = w.Bytes() + max(roomFree, w.Bytes())
	}
	groups := groupsFor(max(bytes, int64(w.blocks.end())*blockBytes+size.JournalBytes))
	groups = max(groups, int64(w.last)/inodesPerGroup+1)
	if size.Bytes > 0 && groups > groupsFor(size.Bytes) {
		return ErrFull
	}
	l, err := w.layOut(ctx, groups)
	if err != nil {
		return err
	}
	defer l.file.Close()
	if l.signed() != hash.signed {
		return fmt.Errorf("mkfs.ext4 hashes names in another way than expected")
	}
	if err := w.out.Truncate(groups * groupBlocks * blockBytes); err != nil {
		return err
	}
	for g := range l.groups {
		if err := w.finishGroup(l, g, dirs); err != nil {
			return err
		}
	}
	if err := l.writeSuper(w); err != nil {
		return err
	}
	return w.complete(ctx, size.JournalBytes)
}

// complete adds the journal, which has no part in how the files lie.
func (w *Writer) complete(ctx context.Context, journal int64) error {
	tune, err := host.LookPath("tune2fs")
	if err != nil {
		return err
	}
	err = host.Run(ctx, host.Command{Path: tune, Args: []string{"-J", fmt.Sprintf("size=%d", journal>>20), w.path}, Env: fixedTime()})
	if err != nil {
		return err
	}
	if err := w.out.Sync(); err != nil {
		return err
	}
	err = w.out.Close()
	w.out = nil
	return err
}

// layout is an empty filesystem that mkfs.ext4 has made.
type layout struct {
	file   *os.File
	super  [1024]byte
	table  []byte // descriptors of the groups
	groups []group
	seed   uint32
	free   uint64
	inodes uint64 // free ones
}

type group struct {
	blockBitmap, inodeBitmap, inodeTable uint64
	flags                                uint16
}

// layOut makes an empty filesystem of that many groups.
func (w *Writer) layOut(ctx context.Context, groups int64) (*layout, error) {
	path := filepath.Join(w.scratch, "layout")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	l := &layout{file: f, seed: w.seed}
	err = f.Truncate(groups * groupBlocks * blockBytes)
	if err == nil {
		err = mkfs(ctx, nil, path, w.uuid, fmt.Sprintf(",resize=%d", growBlocks),
			"-O", "^has_journal", "-N", strconv.FormatInt(groups*inodesPerGroup, 10), "-m", "1", "-L", "root")
	}
	if err == nil {
		err = l.read(groups)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

func (l *layout) signed() bool { return binary.LittleEndian.Uint32(l.super[0x160:])&1 != 0 }

func (l *layout) read(groups int64) error {
	le := binary.LittleEndian
	if _, err := l.file.ReadAt(l.super[:], superOffset); err != nil {
		return err
	}
	switch s := l.super[:]; {
	case le.Uint16(s[0x38:]) != superMagic, le.Uint32(s[0x18:]) != 2, le.Uint32(s[0x20:]) != groupBlocks,
		le.Uint32(s[0x28:]) != inodesPerGroup, le.Uint16(s[0x58:]) != inodeBytes, le.Uint16(s[0xfe:]) != descBytes,
		1<<s[0x174] != flexGroups, le.Uint32(s[0x64:])&0x400 == 0 /* metadata_csum */ :
		return errors.New("mkfs.ext4 makes another kind of filesystem than expected")
	}
	l.table = make([]byte, groups*descBytes)
	if _, err := l.file.ReadAt(l.table, blockBytes); err != nil {
		return err
	}
	for g := range groups {
		d := l.table[g*descBytes:]
		wide := func(low, high int) uint64 { return uint64(le.Uint32(d[low:])) | uint64(le.Uint32(d[high:]))<<32 }
		l.groups = append(l.groups, group{wide(0, 32), wide(4, 36), wide(8, 40), le.Uint16(d[18:])})
	}
	return nil
}

// Flags of a group.
const (
	inodesUninit = 1
	blocksUninit = 2
)

// bitmap returns which blocks of a group mkfs has taken.
func (l *layout) bitmap(g int) ([]byte, error) {
	p := make([]byte, blockBytes)
	if l.groups[g].flags&blocksUninit == 0 {
		_, err := l.file.ReadAt(p, int64(l.groups[g].blockBitmap)*blockBytes)
		return p, err
	}
	if hasSuper(uint64(g)) {
		for i := range 1 + gdtBlocks {
			p[i/8] |= 1 << (i % 8)
		}
	}
	return p, nil
}

// finishGroup copies what mkfs has made in a group, adds its files and writes its bitmaps,
// inodes and descriptor.
func (w *Writer) finishGroup(l *layout, g int, dirs []uint64) error {
	le := binary.LittleEndian
	bitmap, err := l.bitmap(g)
	if err != nil {
		return err
	}
	var block [blockBytes]byte
	for i := range uint64(groupBlocks) {
		if bitmap[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		at := uint64(g)*groupBlocks + i
		if !w.blocks.reservedOrFree(at) {
			return fmt.Errorf("mkfs.ext4 has put something of its own where files are, at block %d", at)
		}
		if _, err := l.file.ReadAt(block[:], int64(at)*blockBytes); err != nil && err != io.EOF {
			return err
		}
		if isZero(block[:]) {
			continue
		}
		if _, err := w.out.WriteAt(block[:], int64(at)*blockBytes); err != nil {
			return err
		}
	}
	if g == 0 { // what mkfs's own root directory and lost+found took is free again
		if err := l.forget(bitmap); err != nil {
			return err
		}
	}
	for i := range uint64(groupBlocks) {
		if at := uint64(g)*groupBlocks + i; w.blocks.isTaken(at) && !w.blocks.reserved(at) {
			bitmap[i/8] |= 1 << (i % 8)
		}
	}
	inodes, free, lastUsed, directories, err := w.putInodes(l, g, dirs)
	if err != nil {
		return err
	}
	if _, err := w.out.WriteAt(bitmap, int64(l.groups[g].blockBitmap)*blockBytes); err != nil {
		return err
	}
	if _, err := w.out.WriteAt(inodes, int64(l.groups[g].inodeBitmap)*blockBytes); err != nil {
		return err
	}
	freeBlocks := uint64(groupBlocks)
	for _, b := range bitmap {
		freeBlocks -= uint64(bits.OnesCount8(b))
	}
	l.free += freeBlocks
	l.inodes += free
	d := l.table[g*descBytes:][:descBytes]
	split := func(low, high int, v uint32) {
		le.PutUint16(d[low:], uint16(v))
		le.PutUint16(d[high:], uint16(v>>16))
	}
	split(12, 44, uint32(freeBlocks))
	split(14, 46, uint32(free))
	split(16, 48, directories)
	split(24, 56, sum(l.seed, bitmap))
	split(26, 58, sum(l.seed, inodes[:inodesPerGroup/8]))
	split(28, 50, inodesPerGroup-lastUsed) // of the table, unused at its end
	le.PutUint16(d[18:], l.groups[g].flags&^(inodesUninit|blocksUninit))
	le.PutUint16(d[30:], 0)
	le.PutUint16(d[30:], uint16(sum(sum32(l.seed, uint32(g)), d)))
	return nil
}

// forget frees what mkfs's root directory and lost+found have.
func (l *layout) forget(bitmap []byte) error {
	for _, ino := range []int64{rootInode, lostFoundInode} {
		var r record
		if _, err := l.file.ReadAt(r[:], int64(l.groups[0].inodeTable)*blockBytes+(ino-1)*inodeBytes); err != nil {
			return err
		}
		node, depth, ok := getNode(r[40:100])
		if !ok || depth != 0 {
			return errors.New("mkfs.ext4 makes another kind of directory than expected")
		}
		for _, x := range node {
			for i := x.physical; i < x.physical+uint64(x.length); i++ {
				bitmap[i/8] &^= 1 << (i % 8)
			}
		}
	}
	return nil
}

// putInodes writes a group's inodes and returns its bitmap of them, how many are free, where
// the used ones end, and how many are directories.
func (w *Writer) putInodes(l *layout, g int, dirs []uint64) (bitmap []byte, free uint64, end, directories uint32, err error) {
	bitmap = make([]byte, blockBytes)
	for i := inodesPerGroup / 8; i < blockBytes; i++ {
		bitmap[i] = 0xff // there are no such inodes
	}
	free = inodesPerGroup
	use := func(i uint32) {
		bitmap[i/8] |= 1 << (i % 8)
		free--
		end = i + 1
	}
	first := Inode(g*inodesPerGroup) + 1
	if first > w.last {
		return bitmap, free, end, 0, nil
	}
	n := int(min(inodesPerGroup, w.last-first+1))
	table := make([]byte, n*inodeBytes)
	if _, err := w.table.ReadAt(table, int64(first)*inodeBytes); err != nil && err != io.EOF {
		return nil, 0, 0, 0, err
	}
	if g == 0 { // the reserved ones are mkfs's, but for the root directory
		root := [inodeBytes]byte(table[(rootInode-1)*inodeBytes:])
		if _, err := l.file.ReadAt(table[:(lostFoundInode-1)*inodeBytes], int64(l.groups[0].inodeTable)*blockBytes); err != nil {
			return nil, 0, 0, 0, err
		}
		copy(table[(rootInode-1)*inodeBytes:], root[:])
	}
	for i := range uint32(n) {
		ino := first + Inode(i)
		if ino < lostFoundInode && ino != rootInode {
			use(i)
			continue
		}
		if w.links[ino] == 0 {
			continue
		}
		use(i)
		if dirs[ino/64]&(1<<(ino%64)) != 0 {
			directories++
		}
		r := (*record)(table[i*inodeBytes:])
		r.setLinks(w.links[ino])
		r.seal(w.inodeSeed(ino))
	}
	_, err = w.out.WriteAt(table, int64(l.groups[g].inodeTable)*blockBytes)
	return bitmap, free, end, directories, err
}

// reservedOrFree tells whether mkfs may have a block.
func (b *blocks) reservedOrFree(block uint64) bool { return b.reserved(block) || !b.isTaken(block) }

// writeSuper writes the descriptors and the superblock with what is free now. Their copies
// are not told, as the kernel does not tell them either.
func (l *layout) writeSuper(w *Writer) error {
	le := binary.LittleEndian
	if _, err := w.out.WriteAt(l.table, blockBytes); err != nil {
		return err
	}
	s := l.super[:]
	le.PutUint32(s[0x0c:], uint32(l.free))
	le.PutUint32(s[0x158:], uint32(l.free>>32))
	le.PutUint32(s[0x10:], uint32(l.inodes))
	le.PutUint32(s[1020:], sum(^uint32(0), s[:1020]))
	_, err := w.out.WriteAt(s, superOffset)
	return err
}

func uuidBytes(uuid string) []byte {
	var out [16]byte
	hexed := strings.ReplaceAll(uuid, "-", "")
	for i := range out {
		n, _ := strconv.ParseUint(hexed[2*i:2*i+2], 16, 8)
		out[i] = byte(n)
	}
	return out[:]
}
