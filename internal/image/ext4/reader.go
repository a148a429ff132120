package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Reader reads a filesystem without mounting it. What it reads may be damaged, or made to
// harm: it answers with errors then, and its memory stays bounded.
type Reader struct {
	file      io.ReaderAt
	block     int64 // bytes
	inodeSize int64
	perGroup  uint32 // inodes
	inodes    uint32
	blocks    uint64
	tables    []uint64 // of each group's inodes
}

// Features without which a filesystem can't be read as Reader does.
const (
	readable     = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x2000 | 0x4000 // filetype extents 64bit mmp flex_bg csum_seed largedir
	needRecovery = 0x4

	maxReadGroups = 1 << 17 // 16 TiB
)

// ErrUnclean is that of a filesystem whose journal has to be replayed first.
var ErrUnclean = errors.New("the filesystem was not unmounted cleanly")

// NewReader begins to read the filesystem in f.
func NewReader(f io.ReaderAt) (*Reader, error) {
	le := binary.LittleEndian
	var s [1024]byte
	if _, err := f.ReadAt(s[:], superOffset); err != nil {
		return nil, err
	}
	if le.Uint16(s[0x38:]) != superMagic {
		return nil, errors.New("there is no ext4 filesystem")
	}
	features := le.Uint32(s[0x60:])
	if features&needRecovery != 0 {
		return nil, ErrUnclean
	}
	if features&^uint32(readable) != 0 {
		return nil, fmt.Errorf("the ext4 filesystem has features that are not known: %#x", features&^uint32(readable))
	}
	r := &Reader{file: f, inodeSize: 128, perGroup: le.Uint32(s[0x28:]), inodes: le.Uint32(s[0:]), blocks: uint64(le.Uint32(s[4:]))}
	logBlock, groupBlocks, descSize := le.Uint32(s[0x18:]), uint64(le.Uint32(s[0x20:])), int64(32)
	if le.Uint32(s[0x4c:]) > 0 {
		r.inodeSize = int64(le.Uint16(s[0x58:]))
	}
	if features&0x80 != 0 {
		r.blocks |= uint64(le.Uint32(s[0x150:])) << 32
		descSize = int64(le.Uint16(s[0xfe:]))
	}
	if logBlock > 6 || groupBlocks == 0 || r.perGroup == 0 || r.inodeSize < 128 || r.inodeSize&(r.inodeSize-1) != 0 || r.inodeSize > 1024<<logBlock || descSize < 32 || descSize > 1024 {
		return nil, errors.New("the superblock is damaged")
	}
	r.block = 1024 << logBlock
	groups := (r.blocks + groupBlocks - 1) / groupBlocks
	if groups > maxReadGroups || uint64(r.inodes) > groups*uint64(r.perGroup) {
		return nil, errors.New("the superblock is damaged")
	}
	return r, r.readTables(int64(groups), descSize, int64(le.Uint32(s[0x14:])))
}

func (r *Reader) readTables(groups, descSize, first int64) error {
	le := binary.LittleEndian
	table := io.NewSectionReader(r.file, (first+1)*r.block, groups*descSize)
	d := make([]byte, descSize)
	for range groups {
		if _, err := io.ReadFull(table, d); err != nil {
			return err
		}
		at := uint64(le.Uint32(d[8:]))
		if descSize >= 64 {
			at |= uint64(le.Uint32(d[40:])) << 32
		}
		r.tables = append(r.tables, at)
	}
	return nil
}

// Stat is what there is to know of a file.
type Stat struct {
	Attr
	Size  int64
	Links int

	inode  Inode
	flags  uint32
	data   [60]byte // the inode's own: an extent tree, block numbers, a device, a short link
	inside []byte   // what follows the inode's fields
	xattrs uint64   // block of further ones
}

// Stat reads an inode, its extended attributes with it.
func (r *Reader) Stat(ino Inode) (*Stat, error) {
	if ino == 0 || uint32(ino) > r.inodes {
		return nil, fmt.Errorf("there is no inode %d", ino)
	}
	i := uint32(ino) - 1
	p := make([]byte, r.inodeSize)
	if _, err := r.file.ReadAt(p, int64(r.tables[i/r.perGroup])*r.block+int64(i%r.perGroup)*r.inodeSize); err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	le := binary.LittleEndian
	s := &Stat{inode: ino, flags: le.Uint32(p[32:]), Links: int(le.Uint16(p[26:]))}
	s.Mode = uint32(le.Uint16(p[0:]))
	s.UID = uint32(le.Uint16(p[2:])) | uint32(le.Uint16(p[120:]))<<16
	s.GID = uint32(le.Uint16(p[24:])) | uint32(le.Uint16(p[122:]))<<16
	s.Size = int64(le.Uint32(p[4:])) | int64(le.Uint32(p[108:]))<<32
	copy(s.data[:], p[40:100])
	s.MTime = time.Unix(int64(int32(le.Uint32(p[16:]))), 0)
	s.xattrs = uint64(le.Uint32(p[104:])) | uint64(le.Uint16(p[118:]))<<32
	if r.inodeSize > 128+4 {
		extra := int64(le.Uint16(p[128:]))
		if extra >= 12 {
			s.MTime = decodeTime(le.Uint32(p[16:]), le.Uint32(p[136:]))
		}
		if extra >= 4 && 128+extra+4 <= r.inodeSize && le.Uint32(p[128+extra:]) == xattrMagic {
			s.inside = p[128+extra:]
		}
	}
	if s.Size < 0 {
		return nil, fmt.Errorf("inode %d is damaged", ino)
	}
	if t := s.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		if old, large := le.Uint32(s.data[0:]), le.Uint32(s.data[4:]); old != 0 {
			s.Major, s.Minor = old>>8&0xff, old&0xff
		} else {
			s.Major, s.Minor = large>>8&0xfff, large&0xff|large>>12&0xfff00
		}
	}
	return s, r.readXattrs(s)
}

func (r *Reader) readXattrs(s *Stat) error {
	if s.inside != nil {
		s.Xattrs = getXattrs(s.inside, 4, 4)
	}
	if s.xattrs == 0 {
		return nil
	}
	p := make([]byte, r.block)
	if err := r.readBlock(p, s.xattrs); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(p) == xattrMagic {
		s.Xattrs = append(s.Xattrs, getXattrs(p, 32, 0)...)
	}
	return nil
}

func (r *Reader) readBlock(p []byte, block uint64) error {
	if block == 0 || block >= r.blocks {
		return fmt.Errorf("a block lies outside of the filesystem, at %d", block)
	}
	_, err := r.file.ReadAt(p[:r.block], int64(block)*r.block)
	return err
}

// Target returns where a symbolic link leads.
func (r *Reader) Target(s *Stat) (string, error) {
	if s.Size > r.block {
		return "", fmt.Errorf("the symbolic link of inode %d is damaged", s.inode)
	}
	if s.Size < 60 && s.flags&extentsFlag == 0 {
		return string(s.data[:s.Size]), nil
	}
	b, err := io.ReadAll(r.Content(s))
	return string(b), err
}

// Entries yields the names in a directory, but for "." and "..". After an error it ends.
func (r *Reader) Entries(s *Stat) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		content, p := r.Content(s), make([]byte, r.block)
		le := binary.LittleEndian
		for {
			if _, err := io.ReadFull(content, p); err == io.EOF {
				return
			} else if err != nil {
				yield(Entry{}, err)
				return
			}
			for at := 0; at+8 <= len(p); {
				length, n := int(le.Uint16(p[at+4:])), int(p[at+6])
				if length < 8 || at+length > len(p) || 8+n > length {
					yield(Entry{}, fmt.Errorf("the directory of inode %d is damaged", s.inode))
					return
				}
				e := Entry{Name: string(p[at+8 : at+8+n]), Inode: Inode(le.Uint32(p[at:]))}
				at += length
				if e.Inode == 0 || e.Name == "." || e.Name == ".." {
					continue
				}
				var err error
				if e.Name == "" || strings.ContainsAny(e.Name, "/\x00") {
					err = fmt.Errorf("the directory of inode %d has the name %q", s.inode, e.Name)
				}
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// Content reads a file's content. Holes read as zeros.
func (r *Reader) Content(s *Stat) io.Reader { return &content{r: r, s: s} }

// content reads a file; it looks up a run of blocks at a time.
type content struct {
	r  *Reader
	s  *Stat
	at int64
	run
}

// run is some of a file's blocks that lie together, or a hole.
type run struct {
	logical, length uint64
	physical        uint64 // 0: a hole
}

func (c *content) Read(p []byte) (int, error) {
	if c.at >= c.s.Size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), c.s.Size-c.at)]
	block := uint64(c.at / c.r.block)
	if block < c.logical || block >= c.logical+c.length {
		var err error
		if c.run, err = c.r.locate(c.s, block); err != nil {
			return 0, err
		}
	}
	p = p[:min(int64(len(p)), int64(c.logical+c.length)*c.r.block-c.at)]
	if c.physical == 0 {
		clear(p)
		c.at += int64(len(p))
		return len(p), nil
	}
	if c.physical+c.length > c.r.blocks {
		return 0, fmt.Errorf("blocks of inode %d lie outside of the filesystem", c.s.inode)
	}
	n, err := c.r.file.ReadAt(p, int64(c.physical-c.logical)*c.r.block+c.at)
	c.at += int64(n)
	if n == len(p) {
		err = nil
	}
	return n, err
}

// locate returns the run that has a block of the file.
func (r *Reader) locate(s *Stat, block uint64) (run, error) {
	if s.flags&extentsFlag == 0 {
		return r.indirect(s, block)
	}
	end := (uint64(s.Size) + uint64(r.block) - 1) / uint64(r.block)
	node, depth, ok := getNode(s.data[:])
	for above := uint16(6); ok && depth < above; { // a child is below its parent, or there is no end
		var below *extent
		for i := range node {
			if uint64(node[i].logical) > block {
				end = min(end, uint64(node[i].logical))
				break
			}
			below = &node[i]
		}
		if below == nil {
			return run{block, end - block, 0}, nil
		}
		if depth == 0 {
			return leafRun(*below, block, end), nil
		}
		p := make([]byte, r.block)
		if err := r.readBlock(p, below.physical); err != nil {
			return run{}, err
		}
		above = depth
		node, depth, ok = getNode(p)
	}
	return run{}, fmt.Errorf("the extents of inode %d are damaged", s.inode)
}

// leafRun is the run of a leaf's extent that block is in, or the hole behind it up to end.
func leafRun(x extent, block, end uint64) run {
	length, physical := uint64(x.length), x.physical
	if length > maxExtent { // reserved, but never written
		length, physical = length-maxExtent, 0
	}
	start := uint64(x.logical)
	if block >= start+length {
		return run{block, max(end, block+1) - block, 0}
	}
	return run{start, length, physical}
}

// indirect finds a block of a file that has lists of block numbers, as ext2 made them.
func (r *Reader) indirect(s *Stat, block uint64) (run, error) {
	le := binary.LittleEndian
	const direct = 12
	if block < direct {
		return run{block, 1, uint64(le.Uint32(s.data[4*block:]))}, nil
	}
	per := uint64(r.block / 4)
	span, left := per, block-direct
	for level := range 3 {
		if left >= span {
			left -= span
			span *= per
			continue
		}
		at := uint64(le.Uint32(s.data[4*(direct+level):]))
		for ; at != 0 && span > 1; left %= span {
			p := make([]byte, r.block)
			if err := r.readBlock(p, at); err != nil {
				return run{}, err
			}
			span /= per
			at = uint64(le.Uint32(p[4*(left/span):]))
		}
		return run{block, 1, at}, nil
	}
	return run{}, fmt.Errorf("inode %d is larger than its block lists", s.inode)
}

// Lookup finds a file by its path, through symbolic links as a process would that has the
// filesystem as its root.
func (r *Reader) Lookup(path string) (*Stat, error) {
	const maxSymlinks = 40
	todo, links := strings.Split(path, "/"), 0
	above := []Inode{rootInode} // the directories on the way, the last is where we are
	at, err := r.Stat(rootInode)
	for len(todo) > 0 && err == nil {
		part := todo[0]
		todo = todo[1:]
		if part == "" || part == "." {
			continue
		}
		if at.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil, unix.ENOTDIR
		}
		if part == ".." {
			above = above[:max(1, len(above)-1)]
			at, err = r.Stat(above[len(above)-1])
			continue
		}
		var next *Stat
		if next, err = r.child(at, part); err != nil {
			return nil, err
		}
		if next.Mode&unix.S_IFMT != unix.S_IFLNK {
			at, above = next, append(above, next.inode)
			continue
		}
		var target string
		if target, err = r.Target(next); err != nil {
			return nil, err
		}
		if links++; links > maxSymlinks {
			return nil, unix.ELOOP
		}
		if strings.HasPrefix(target, "/") {
			above = above[:1]
			at, err = r.Stat(rootInode)
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return at, err
}

func (r *Reader) child(dir *Stat, name string) (*Stat, error) {
	for e, err := range r.Entries(dir) {
		if err != nil {
			return nil, err
		}
		if e.Name == name {
			return r.Stat(e.Inode)
		}
	}
	return nil, fs.ErrNotExist
}
