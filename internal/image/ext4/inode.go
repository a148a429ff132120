package ext4

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// Inode is a file's number in its filesystem. Names refer to it.
type Inode uint32

// Attr is what a file has besides its content.
type Attr struct {
	Mode         uint32 // type and permissions, as in stat(2)
	UID, GID     uint32
	MTime        time.Time
	Major, Minor uint32 // of a device
	Xattrs       []Xattr
}

// record is an inode as it lies in its table.
type record [inodeBytes]byte

func (r *record) put(a Attr, size int64) {
	le := binary.LittleEndian
	le.PutUint16(r[0:], uint16(a.Mode))
	le.PutUint16(r[2:], uint16(a.UID))
	le.PutUint16(r[120:], uint16(a.UID>>16))
	le.PutUint16(r[24:], uint16(a.GID))
	le.PutUint16(r[122:], uint16(a.GID>>16))
	le.PutUint16(r[128:], extraBytes)
	s, extra := encodeTime(a.MTime)
	for _, at := range [][2]int{{8, 140}, {12, 132}, {16, 136}, {144, 148}} { // access, change, content, birth
		le.PutUint32(r[at[0]:], s)
		le.PutUint32(r[at[1]:], extra)
	}
	r.setSize(size)
}

func (r *record) setSize(n int64) {
	binary.LittleEndian.PutUint32(r[4:], uint32(n))
	binary.LittleEndian.PutUint32(r[108:], uint32(n>>32))
}

// setBlocks sets how many blocks the file takes, all told; the format counts 512 bytes.
func (r *record) setBlocks(n uint64) {
	n *= blockBytes / 512
	binary.LittleEndian.PutUint32(r[28:], uint32(n))
	binary.LittleEndian.PutUint16(r[116:], uint16(n>>32))
}

func (r *record) blocks() uint64 {
	n := uint64(binary.LittleEndian.Uint32(r[28:])) | uint64(binary.LittleEndian.Uint16(r[116:]))<<32
	return n / (blockBytes / 512)
}

func (r *record) setFlags(f uint32) { binary.LittleEndian.PutUint32(r[32:], f) }
func (r *record) flags() uint32     { return binary.LittleEndian.Uint32(r[32:]) }
func (r *record) setLinks(n uint16) { binary.LittleEndian.PutUint16(r[26:], n) }
func (r *record) xattrsAt() uint64 {
	return uint64(binary.LittleEndian.Uint32(r[104:])) | uint64(binary.LittleEndian.Uint16(r[118:]))<<32
}

func (r *record) setXattrsAt(at uint64) {
	binary.LittleEndian.PutUint32(r[104:], uint32(at))
	binary.LittleEndian.PutUint16(r[118:], uint16(at>>32))
}

// seal sets the checksum, which covers all else.
func (r *record) seal(seed uint32) {
	le := binary.LittleEndian
	le.PutUint16(r[124:], 0)
	le.PutUint16(r[130:], 0)
	c := sum(seed, r[:])
	le.PutUint16(r[124:], uint16(c))
	le.PutUint16(r[130:], uint16(c>>16))
}

// Add makes a file without content: a directory, device, pipe or socket.
func (w *Writer) Add(a Attr) (Inode, error) {
	ino, err := w.newInode()
	if err != nil {
		return 0, err
	}
	return ino, w.put(ino, a)
}

func (w *Writer) put(ino Inode, a Attr) error {
	var r record
	r.put(a, 0)
	le := binary.LittleEndian
	if t := a.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		if a.Major < 256 && a.Minor < 256 {
			le.PutUint32(r[40:], a.Major<<8|a.Minor)
		} else {
			le.PutUint32(r[44:], a.Minor&0xff|(a.Major&0xfff)<<8|(a.Minor&^0xff)<<12)
		}
	}
	if err := w.putXattrs(ino, &r, a.Xattrs); err != nil {
		return err
	}
	return w.store(ino, &r)
}

// SetAttr gives a directory other attributes.
func (w *Writer) SetAttr(ino Inode, a Attr) error {
	r, err := w.load(ino)
	if err != nil {
		return err
	}
	if at := r.xattrsAt(); at != 0 {
		if err := w.discard(at, 1); err != nil {
			return err
		}
	}
	return w.put(ino, a)
}

// maxTarget is the longest symbolic link, in bytes.
const maxTarget = blockBytes - 1

// AddSymlink makes a symbolic link.
func (w *Writer) AddSymlink(a Attr, target string) (Inode, error) {
	if len(target) == 0 || len(target) > maxTarget {
		return 0, fmt.Errorf("a symbolic link's target has %d bytes, not 1 to %d", len(target), maxTarget)
	}
	ino, err := w.newInode()
	if err != nil {
		return 0, err
	}
	var r record
	r.put(a, int64(len(target)))
	if len(target) < 60 {
		copy(r[40:], target)
	} else {
		block := make([]byte, blockBytes)
		copy(block, target)
		tree := extents{w: w, inode: ino}
		if err := w.writeRun(&tree, 0, block); err != nil {
			return 0, err
		}
		if err := w.setTree(&r, &tree); err != nil {
			return 0, err
		}
	}
	if err := w.putXattrs(ino, &r, a.Xattrs); err != nil {
		return 0, err
	}
	return ino, w.store(ino, &r)
}

// holeBytes is the piece of a file that becomes a hole if it has only zeros, aligned. Smaller
// holes would save little and make long extent trees.
const holeBytes = 64 << 10

// AddFile makes a regular file of what r has to give. Long runs of zeros become holes.
func (w *Writer) AddFile(a Attr, r io.Reader) (Inode, error) {
	ino, err := w.newInode()
	if err != nil {
		return 0, err
	}
	tree := extents{w: w, inode: ino}
	var size int64
	for {
		n, err := fill(r, w.chunk)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if size+int64(n) > maxFile {
			return 0, ErrFull
		}
		// A block's end belongs to the file: what lay there before must not.
		clear(w.chunk[n:min(len(w.chunk), n+blockBytes)])
		padded := (n + blockBytes - 1) / blockBytes * blockBytes
		if err := w.writePieces(&tree, uint32(size/blockBytes), w.chunk[:padded]); err != nil {
			return 0, err
		}
		size += int64(n)
		if err != nil {
			break
		}
	}
	var rec record
	rec.put(a, size)
	if err := w.setTree(&rec, &tree); err != nil {
		return 0, err
	}
	if err := w.putXattrs(ino, &rec, a.Xattrs); err != nil {
		return 0, err
	}
	return ino, w.store(ino, &rec)
}

// fill reads until p is full. Unlike io.ReadFull it does not give an end in the middle the name
// that readers have for an end that comes too early.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var some int
		some, err = r.Read(p[n:])
		n += some
	}
	return n, err
}

// maxFile bounds a file: below 2^32 blocks, of which the last can't be addressed.
const maxFile = 1 << 40

// writePieces writes whole blocks of a file but for the pieces that have only zeros.
func (w *Writer) writePieces(tree *extents, logical uint32, p []byte) error {
	for len(p) > 0 {
		n := 0
		for n < len(p) {
			piece := p[n:min(len(p), n+holeBytes)]
			if isZero(piece) {
				break
			}
			n += len(piece)
		}
		if err := w.writeRun(tree, logical, p[:n]); err != nil {
			return err
		}
		logical += uint32(n / blockBytes)
		p = p[n:]
		if len(p) > 0 {
			n = min(len(p), holeBytes)
			logical += uint32(n / blockBytes)
			p = p[n:]
		}
	}
	return nil
}

// writeRun writes whole blocks of a file.
func (w *Writer) writeRun(tree *extents, logical uint32, p []byte) error {
	for len(p) > 0 {
		at, n := w.blocks.take(uint64(len(p) / blockBytes))
		if n == 0 {
			return ErrFull
		}
		if err := w.writeAt(p[:n*blockBytes], at); err != nil {
			return err
		}
		if err := tree.add(extent{logical: logical, length: uint32(n), physical: at}); err != nil {
			return err
		}
		logical += uint32(n)
		p = p[n*blockBytes:]
	}
	return nil
}

func (w *Writer) setTree(r *record, tree *extents) error {
	root, err := tree.root()
	copy(r[40:100], root[:])
	r.setFlags(extentsFlag)
	r.setBlocks(tree.blocks)
	return err
}

func (w *Writer) putXattrs(ino Inode, r *record, xattrs []Xattr) error {
	if len(xattrs) == 0 {
		return nil
	}
	all := stored(xattrs)
	inside := r[128+extraBytes:]
	if len(all) == 0 {
		return nil
	}
	if putXattrs(inside, 4, 4, all) {
		binary.LittleEndian.PutUint32(inside, xattrMagic)
		return nil
	}
	clear(inside)
	at, n := w.blocks.take(1)
	if n == 0 {
		return ErrFull
	}
	block, ok := xattrBlock(w.seed, at, all)
	if !ok {
		return ErrXattrs
	}
	r.setXattrsAt(at)
	r.setBlocks(r.blocks() + 1)
	return w.writeAt(block, at)
}

// isZero tells whether p, of a multiple of eight bytes, has only zeros.
func isZero(p []byte) bool {
	for len(p) >= 64 {
		q := p[:64]
		if binary.NativeEndian.Uint64(q)|binary.NativeEndian.Uint64(q[8:])|binary.NativeEndian.Uint64(q[16:])|binary.NativeEndian.Uint64(q[24:])|
			binary.NativeEndian.Uint64(q[32:])|binary.NativeEndian.Uint64(q[40:])|binary.NativeEndian.Uint64(q[48:])|binary.NativeEndian.Uint64(q[56:]) != 0 {
			return false
		}
		p = p[64:]
	}
	return true
}
