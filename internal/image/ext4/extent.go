package ext4

import "encoding/binary"

// extent is a run of a file's blocks. In an index node it is a child: first block, place.
type extent struct {
	logical  uint32
	length   uint32
	physical uint64
}

// extents builds the extent tree of one inode from its runs, which come in order. Nodes are
// written as they fill, so that memory does not grow with the file.
type extents struct {
	w      *Writer
	inode  Inode
	leaf   []extent
	nodes  []extent // the leaves that have been written
	blocks uint64   // that data and nodes take
}

func (e *extents) add(x extent) error {
	e.blocks += uint64(x.length)
	if n := len(e.leaf); n > 0 {
		last := &e.leaf[n-1]
		if last.logical+last.length == x.logical && last.physical+uint64(last.length) == x.physical && last.length+x.length <= maxExtent {
			last.length += x.length
			return nil
		}
		if n == extentsPerBlock {
			if err := e.spill(&e.nodes, e.leaf, 0); err != nil {
				return err
			}
			e.leaf = e.leaf[:0]
		}
	}
	e.leaf = append(e.leaf, x)
	return nil
}

// spill writes a node and adds it to those above.
func (e *extents) spill(above *[]extent, node []extent, depth uint16) error {
	at, n := e.w.blocks.take(1)
	if n == 0 {
		return ErrFull
	}
	e.blocks++
	var block [blockBytes]byte
	putNode(block[:blockBytes-4], node, depth)
	binary.LittleEndian.PutUint32(block[blockBytes-4:], sum(e.w.inodeSeed(e.inode), block[:blockBytes-4]))
	*above = append(*above, extent{logical: node[0].logical, physical: at})
	return e.w.writeAt(block[:], at)
}

// root returns the tree's root, which is in the inode.
func (e *extents) root() (root [60]byte, err error) {
	level, depth := e.leaf, uint16(0)
	if len(e.nodes) > 0 {
		if err := e.spill(&e.nodes, e.leaf, 0); err != nil {
			return root, err
		}
		level, depth = e.nodes, 1
	}
	for len(level) > 4 {
		var above []extent
		for len(level) > 0 {
			n := min(len(level), extentsPerBlock)
			if err := e.spill(&above, level[:n], depth); err != nil {
				return root, err
			}
			level = level[n:]
		}
		level = above
		depth++
	}
	putNode(root[:], level, depth)
	return root, nil
}

// putNode encodes a node of the tree; its children are leaves' runs if depth is 0.
func putNode(p []byte, node []extent, depth uint16) {
	le := binary.LittleEndian
	le.PutUint16(p[0:], extentMagic)
	le.PutUint16(p[2:], uint16(len(node)))
	le.PutUint16(p[4:], uint16((len(p)-12)/12))
	le.PutUint16(p[6:], depth)
	for i, x := range node {
		at := p[12+12*i:]
		le.PutUint32(at[0:], x.logical)
		if depth == 0 {
			le.PutUint16(at[4:], uint16(x.length))
			le.PutUint16(at[6:], uint16(x.physical>>32))
			le.PutUint32(at[8:], uint32(x.physical))
		} else {
			le.PutUint32(at[4:], uint32(x.physical))
			le.PutUint16(at[8:], uint16(x.physical>>32))
		}
	}
}

// getNode decodes what putNode encodes. A length above maxExtent is that of a run that has
// not been written and reads as zeros. It returns false if p is no such node.
func getNode(p []byte) (node []extent, depth uint16, ok bool) {
	le := binary.LittleEndian
	n := int(le.Uint16(p[2:]))
	if le.Uint16(p) != extentMagic || 12+12*n > len(p) {
		return nil, 0, false
	}
	depth = le.Uint16(p[6:])
	node = make([]extent, n)
	for i := range node {
		at := p[12+12*i:]
		x := extent{logical: le.Uint32(at)}
		if depth == 0 {
			x.length = uint32(le.Uint16(at[4:]))
			x.physical = uint64(le.Uint16(at[6:]))<<32 | uint64(le.Uint32(at[8:]))
		} else {
			x.physical = uint64(le.Uint16(at[8:]))<<32 | uint64(le.Uint32(at[4:]))
		}
		node[i] = x
	}
	return node, depth, true
}
