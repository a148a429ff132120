package ext4

import (
	"cmp"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// Directory is the names in a directory.
type Directory struct {
	Inode   Inode
	Parent  Inode
	Entries []Entry // no "." and ".."; put into another order
}

// Entry is a name.
type Entry struct {
	Name  string
	Inode Inode
	Type  uint32 // as in stat(2)'s mode

	major, minor uint32 // of its hash
}

const (
	dirTail = 12                   // bytes at a block's end that hold its checksum
	dirRoom = blockBytes - dirTail // the rest
	// leafRoom is how far the blocks of a large directory are filled: a name that is added
	// finds room, and need not split its block.
	leafRoom = dirRoom * 4 / 5
	dotsRoom = 24 // bytes of "." and ".."
)

func (e *Entry) bytes() int { return (8 + len(e.Name) + 3) &^ 3 }

// fileTypes are the numbers that directories have for types.
var fileTypes = map[uint32]byte{
	unix.S_IFREG: 1, unix.S_IFDIR: 2, unix.S_IFCHR: 3, unix.S_IFBLK: 4, unix.S_IFIFO: 5, unix.S_IFSOCK: 6, unix.S_IFLNK: 7,
}

// putEntry encodes one name and returns where the next begins.
func putEntry(p []byte, at int, ino Inode, name string, kind byte, length int) int {
	le := binary.LittleEndian
	le.PutUint32(p[at:], uint32(ino))
	le.PutUint16(p[at+4:], uint16(length))
	p[at+6], p[at+7] = byte(len(name)), kind
	copy(p[at+8:], name)
	return at + length
}

// putEntries fills a block from at on; the last name has all room that is left.
func (w *Writer) putEntries(p []byte, at int, dir Inode, entries []Entry) {
	for i := range entries {
		e := &entries[i]
		length := e.bytes()
		if i == len(entries)-1 {
			length = dirRoom - at
		}
		at = putEntry(p, at, e.Inode, e.Name, fileTypes[e.Type], length)
	}
	putEntry(p, dirRoom, 0, "", 0xde, dirTail) // looks unused; the last four bytes are the checksum
	binary.LittleEndian.PutUint32(p[blockBytes-4:], sum(w.inodeSeed(dir), p[:dirRoom]))
}

// putDirectory writes a directory's blocks and completes its inode.
func (w *Writer) putDirectory(d Directory, hash hashing) error {
	links, room := 2, dotsRoom
	for i := range d.Entries {
		room += d.Entries[i].bytes()
		if d.Entries[i].Type == unix.S_IFDIR {
			links++
		}
	}
	if links >= maxLinks {
		links = 1 // uncounted
	}
	w.links[d.Inode] = uint16(links)
	r, err := w.load(d.Inode)
	if err != nil {
		return err
	}
	tree := extents{w: w, inode: d.Inode}
	xattrBlocks := r.blocks()
	flags := uint32(extentsFlag)
	var blocks []byte
	if room <= dirRoom {
		blocks = make([]byte, blockBytes)
		at := putEntry(blocks, 0, d.Inode, ".", 2, 12)
		if len(d.Entries) == 0 {
			putEntry(blocks, at, d.Parent, "..", 2, dirRoom-at)
		} else {
			at = putEntry(blocks, at, d.Parent, "..", 2, 12)
		}
		w.putEntries(blocks, at, d.Inode, d.Entries)
	} else {
		blocks = w.indexed(d, hash)
		flags |= indexFlag
	}
	if err := w.writeRun(&tree, 0, blocks); err != nil {
		return err
	}
	if err := w.setTree(r, &tree); err != nil {
		return err
	}
	r.setFlags(flags)
	r.setBlocks(tree.blocks + xattrBlocks)
	r.setSize(int64(len(blocks)))
	return w.store(d.Inode, r)
}

// hashing is how the filesystem hashes names.
type hashing struct {
	seed   [4]uint32
	signed bool
}

// indexed makes a directory of many blocks: the index's root, at most one level of nodes,
// then the leaves.
func (w *Writer) indexed(d Directory, hash hashing) []byte {
	const rootEntries, nodeEntries = (blockBytes - 32 - 8) / 8, (blockBytes - 8 - 8) / 8
	for i := range d.Entries {
		e := &d.Entries[i]
		e.major, e.minor = dirHash(e.Name, hash.seed, hash.signed)
	}
	slices.SortFunc(d.Entries, func(a, b Entry) int { return cmp.Or(cmp.Compare(a.major, b.major), cmp.Compare(a.minor, b.minor)) })
	var leaves [][]Entry
	for from, to := 0, 0; from < len(d.Entries); from = to {
		for room := 0; to < len(d.Entries) && (to == from || room+d.Entries[to].bytes() <= leafRoom); to++ {
			room += d.Entries[to].bytes()
		}
		leaves = append(leaves, d.Entries[from:to])
	}
	nodes := 0
	if len(leaves) > rootEntries {
		nodes = (len(leaves) + nodeEntries - 1) / nodeEntries
	}
	blocks := make([]byte, (1+nodes+len(leaves))*blockBytes)
	block := func(i int) []byte { return blocks[i*blockBytes:][:blockBytes] }
	index := make([]indexEntry, len(leaves))
	for i, leaf := range leaves {
		index[i] = indexEntry{leaf[0].major, uint32(1 + nodes + i)}
		if i > 0 && leaf[0].major == leaves[i-1][len(leaves[i-1])-1].major {
			index[i].hash |= 1 // names of this hash began in the block before
		}
		w.putEntries(block(1+nodes+i), 0, d.Inode, leaf)
	}
	seed := w.inodeSeed(d.Inode)
	var above []indexEntry
	for i := range nodes {
		part := index[i*nodeEntries : min(len(index), (i+1)*nodeEntries)]
		putEntry(block(1+i), 0, 0, "", 0, blockBytes)
		putIndex(block(1+i), 8, part, seed)
		above = append(above, indexEntry{part[0].hash, uint32(1 + i)})
	}
	root := block(0)
	putEntry(root, 0, d.Inode, ".", 2, 12)
	putEntry(root, 12, d.Parent, "..", 2, blockBytes-12)
	root[28], root[29] = halfMD4Version, 8 // and the length of this header
	if nodes > 0 {
		root[30], index = 1, above
	}
	putIndex(root, 32, index, seed)
	return blocks
}
