package oci

import (
	"hash/maphash"
	"iter"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/image/ext4"
)

// What an image may have at most, all layers together: so that its names, which are held in
// memory, take no more than some 150 MiB.
const (
	maxNodes     = 1_500_000
	maxNameBytes = 48 << 20
	maxDepth     = 1024 // directories above a file
)

// tree is the names of a filesystem in the making. What is in the files is ext4's; of a file
// that has been taken away the node stays, for its name is likely to come again.
type tree struct {
	nodes [][]node // in chunks: a slice that grows would be there twice
	count int32
	text  [][]byte // names and targets, in chunks too
	slots []int32  // hash table of the nodes; 0 is an empty slot
	seed  maphash.Seed
}

type node struct {
	parent, next int32 // next: the one before in the same directory's list; loose if it is in none
	first        int32 // of a directory: the last that was put in
	hash         uint32
	name, target place // target: of a symbolic link
	inode        ext4.Inode
	depth        uint16
	layer        uint16 // the last that has touched it
	cleared      uint16 // of a directory: the last that has removed what lower ones had in it
	kind         uint16 // S_IF… of stat's mode; gone if there is no such file
}

const (
	gone = 0

	loose int32 = -1

	top int32 = 0 // the root directory's node

	chunkNodes = 1 << 13
	chunkText  = 1 << 20
)

// place is where a text lies.
type place struct {
	at uint32
	n  uint16
}

func newTree() *tree {
	t := &tree{seed: maphash.MakeSeed(), slots: make([]int32, 1<<12)}
	t.grow()
	t.count = 1
	*t.node(top) = node{inode: ext4.Top, kind: unix.S_IFDIR}
	return t
}

func (t *tree) node(i int32) *node { return &t.nodes[i/chunkNodes][i%chunkNodes] }

func (t *tree) grow() { t.nodes = append(t.nodes, make([]node, chunkNodes)) }

func (t *tree) string(p place) []byte {
	if p.n == 0 {
		return nil
	}
	return t.text[p.at/chunkText][p.at%chunkText:][:p.n]
}

// keep stores a text of at most 64 KiB.
func (t *tree) keep(s string) (place, error) {
	last := len(t.text) - 1
	if last < 0 || len(t.text[last])+len(s) > chunkText {
		if len(t.text) >= maxNameBytes/chunkText {
			return place{}, errs.New(errs.Invalid, "the names of its files take more than %d MiB", maxNameBytes>>20)
		}
		t.text = append(t.text, make([]byte, 0, chunkText))
		last++
	}
	p := place{uint32(last*chunkText + len(t.text[last])), uint16(len(s))}
	t.text[last] = append(t.text[last], s...)
	return p, nil
}

func (t *tree) hash(parent int32, name string) uint32 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	h.WriteString(name)
	return uint32(h.Sum64()) ^ uint32(parent)*0x9E3779B1
}

// find returns the node of a name, which may be gone; top if there never was one.
func (t *tree) find(parent int32, name string) int32 {
	h := t.hash(parent, name)
	for i := h; ; i++ {
		at := t.slots[i%uint32(len(t.slots))]
		if at == 0 {
			return top
		}
		if n := t.node(at); n.hash == h && n.parent == parent && string(t.string(n.name)) == name {
			return at
		}
	}
}

// make returns the node of a name, which is gone if it is new.
func (t *tree) make(parent int32, name string) (int32, error) {
	if at := t.find(parent, name); at != top {
		if n := t.node(at); n.next == loose {
			n.next, t.node(parent).first = t.node(parent).first, at
		}
		return at, nil
	}
	if t.count >= maxNodes {
		return 0, errs.New(errs.Invalid, "it has more than %d files", maxNodes)
	}
	depth := t.node(parent).depth + 1
	if depth > maxDepth {
		return 0, errs.New(errs.Invalid, "it has directories that lie more than %d deep", maxDepth)
	}
	text, err := t.keep(name)
	if err != nil {
		return 0, err
	}
	at := t.count
	if t.count++; int(at/chunkNodes) == len(t.nodes) {
		t.grow()
	}
	p := t.node(parent)
	*t.node(at) = node{parent: parent, next: p.first, hash: t.hash(parent, name), name: text, depth: depth}
	p.first = at
	if 4*int(t.count) > 3*len(t.slots) {
		t.rehash()
	} else {
		t.insert(at)
	}
	return at, nil
}

func (t *tree) insert(at int32) {
	i := t.node(at).hash
	for t.slots[i%uint32(len(t.slots))] != 0 {
		i++
	}
	t.slots[i%uint32(len(t.slots))] = at
}

func (t *tree) rehash() {
	t.slots = make([]int32, 2*len(t.slots))
	for at := int32(1); at < t.count; at++ {
		t.insert(at)
	}
}

// children yields what is in a directory.
func (t *tree) children(dir int32) iter.Seq2[int32, *node] {
	return func(yield func(int32, *node) bool) {
		for at := t.node(dir).first; at != 0; {
			n := t.node(at)
			if n.kind != gone && !yield(at, n) {
				return
			}
			at = n.next
		}
	}
}

// prune takes what is gone off a directory's list, so that it is not looked at again.
func (t *tree) prune(dir int32) {
	to := &t.node(dir).first
	for at := *to; at != 0; {
		n := t.node(at)
		at = n.next
		if n.kind == gone {
			*to, n.next = at, loose
		} else {
			to = &n.next
		}
	}
}

// path tells where a node is.
func (t *tree) path(at int32) string {
	if at == top {
		return "/"
	}
	n := t.node(at)
	if n.parent == top {
		return "/" + string(t.string(n.name))
	}
	return t.path(n.parent) + "/" + string(t.string(n.name))
}

// directories yields all directories with the names in them. Entries are overwritten by the
// next one's.
func (t *tree) directories() iter.Seq[ext4.Directory] {
	return func(yield func(ext4.Directory) bool) {
		var entries []ext4.Entry
		for at := range t.count {
			n := t.node(at)
			if n.kind != unix.S_IFDIR {
				continue
			}
			entries = entries[:0]
			for _, c := range t.children(at) {
				entries = append(entries, ext4.Entry{Name: string(t.string(c.name)), Inode: c.inode, Type: uint32(c.kind)})
			}
			if !yield(ext4.Directory{Inode: n.inode, Parent: t.node(n.parent).inode, Entries: entries}) {
				return
			}
		}
	}
}
