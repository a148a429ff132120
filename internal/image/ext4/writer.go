package ext4

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Errors of a Writer that are the files' fault.
var (
	ErrFull   = errors.New("the files do not fit into the filesystem")
	ErrLinks  = errors.New("a file has more than 65000 names")
	ErrXattrs = errors.New("the extended attributes of a file do not fit into a block of 4096 bytes")
)

// Writer makes a root filesystem, which can be grown while mounted, out of files that come one
// after another: each byte is written once, at its place, and nothing is known beforehand of how
// much will come. Files can be taken away again. Directories are written last, from the names that
// Finish is given.
//
// mkfs.ext4 makes the filesystem's own structures, in a file of its own, once the size is
// known; it always puts them into the same places, which are kept free for it, and what it
// has made is checked against that before it is copied in.
type Writer struct {
	path    string
	scratch string // directory for what is not kept
	uuid    string
	seed    uint32 // of checksums
	out     *os.File
	table   *os.File // inodes, at their number
	blocks  blocks
	links   []uint16 // names of each inode
	last    Inode
	free    []Inode // of files that are no more
	written Inode   // how many the table has; the others are in records

	chunk   []byte // of a file's content
	pending []byte // bytes to be written at pendingAt
	at      int64
	records []byte
}

const (
	chunkBytes   = 1 << 20
	recordsBytes = 256 << 10
)

// NewWriter starts a filesystem at path, which must not exist. maxBytes bounds its size; 0
// does not. Equal seeds give equal UUIDs.
func NewWriter(path, seed string, maxBytes int64) (*Writer, error) {
	w := &Writer{path: path, uuid: uuidOf(seed), chunk: make([]byte, chunkBytes)}
	w.blocks.limit = growBlocks
	if maxBytes > 0 {
		w.blocks.limit = min(growBlocks, uint64(groupsFor(maxBytes))*groupBlocks)
	}
	w.seed = sum(^uint32(0), uuidBytes(w.uuid))
	var err error
	if w.scratch, err = os.MkdirTemp(filepath.Dir(path), filepath.Base(path)+"-"); err != nil {
		return nil, err
	}
	if w.table, err = os.Create(filepath.Join(w.scratch, "inodes")); err == nil {
		w.out, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	}
	if err == nil {
		err = w.begin()
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// begin makes the inodes that every filesystem has: the root and lost+found.
func (w *Writer) begin() error {
	w.records = make([]byte, inodeBytes*lostFoundInode, recordsBytes)
	w.last = lostFoundInode - 1
	w.links = make([]uint16, lostFoundInode)
	if _, err := w.Add(Attr{Mode: unix.S_IFDIR | 0o700}); err != nil {
		return err
	}
	return w.put(rootInode, Attr{Mode: unix.S_IFDIR | 0o755})
}

// Top and LostFound are directories that every filesystem begins with.
const (
	Top       Inode = rootInode
	LostFound Inode = lostFoundInode
)

// Close removes what the Writer needed; the filesystem too, unless it is finished.
func (w *Writer) Close() error {
	var err error
	if w.table != nil {
		err = w.table.Close()
	}
	if w.out != nil {
		err = errors.Join(err, w.out.Close(), os.Remove(w.path))
	}
	return errors.Join(err, os.RemoveAll(w.scratch))
}

// Bytes returns how many bytes of data the filesystem has so far.
func (w *Writer) Bytes() int64 { return int64(w.blocks.count) * blockBytes }

func (w *Writer) newInode() (Inode, error) {
	if n := len(w.free); n > 0 {
		ino := w.free[n-1]
		w.free = w.free[:n-1]
		return ino, nil
	}
	if uint64(w.last)+1 >= w.blocks.limit/groupBlocks*inodesPerGroup {
		return 0, ErrFull
	}
	w.last++
	w.links = append(w.links, 0)
	return w.last, nil
}

func (w *Writer) inodeSeed(ino Inode) uint32 {
	return sum32(sum32(w.seed, uint32(ino)), 0) // the generation is 0
}

// Link counts a name of the file.
func (w *Writer) Link(ino Inode) error {
	if w.links[ino] >= maxLinks {
		return ErrLinks
	}
	w.links[ino]++
	return nil
}

// Unlink takes a name of the file away, and the file with its last.
func (w *Writer) Unlink(ino Inode) error {
	if w.links[ino]--; w.links[ino] > 0 {
		return nil
	}
	r, err := w.load(ino)
	if err != nil {
		return err
	}
	if at := r.xattrsAt(); at != 0 {
		if err := w.discard(at, 1); err != nil {
			return err
		}
	}
	if r.flags()&extentsFlag != 0 {
		if err := w.discardTree(r[40:100]); err != nil {
			return err
		}
	}
	w.free = append(w.free, ino)
	return w.store(ino, &record{})
}

func (w *Writer) discardTree(p []byte) error {
	node, depth, ok := getNode(p)
	if !ok {
		return fmt.Errorf("the extent tree in the making is damaged")
	}
	for _, x := range node {
		n := uint64(x.length)
		if depth > 0 {
			n = 1
			if err := w.flush(); err != nil {
				return err
			}
			var below [blockBytes]byte
			if _, err := w.out.ReadAt(below[:], int64(x.physical)*blockBytes); err != nil {
				return err
			}
			if err := w.discardTree(below[:blockBytes-4]); err != nil {
				return err
			}
		}
		if err := w.discard(x.physical, n); err != nil {
			return err
		}
	}
	return nil
}

// discard gives blocks back, and their room on the host's disk too if it can.
func (w *Writer) discard(at, n uint64) error {
	w.blocks.release(at, n)
	if start := int64(at) * blockBytes; start+int64(n)*blockBytes > w.at && start < w.at+int64(len(w.pending)) {
		if err := w.flush(); err != nil {
			return err
		}
	}
	err := unix.Fallocate(int(w.out.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(at)*blockBytes, int64(n)*blockBytes)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// writeAt writes at a block's place. Neighbours are gathered, for small files follow one
// another.
func (w *Writer) writeAt(p []byte, block uint64) error {
	at := int64(block) * blockBytes
	if len(w.pending) > 0 && (at != w.at+int64(len(w.pending)) || len(w.pending)+len(p) > chunkBytes) {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if len(p) >= chunkBytes/4 && len(w.pending) == 0 {
		_, err := w.out.WriteAt(p, at)
		return err
	}
	if len(w.pending) == 0 {
		w.at = at
	}
	w.pending = append(w.pending, p...)
	return nil
}

func (w *Writer) flush() error {
	_, err := w.out.WriteAt(w.pending, w.at)
	w.pending = w.pending[:0]
	return err
}

// store keeps an inode until its table's place is known.
func (w *Writer) store(ino Inode, r *record) error {
	switch at := int64(ino) - int64(w.written); {
	case at < 0:
		_, err := w.table.WriteAt(r[:], int64(ino)*inodeBytes)
		return err
	case at*inodeBytes < int64(len(w.records)):
		copy(w.records[at*inodeBytes:], r[:])
		return nil
	}
	if len(w.records) == cap(w.records) {
		if err := w.flushRecords(); err != nil {
			return err
		}
	}
	w.records = append(w.records, r[:]...)
	return nil
}

func (w *Writer) flushRecords() error {
	_, err := w.table.WriteAt(w.records, int64(w.written)*inodeBytes)
	w.written += Inode(len(w.records) / inodeBytes)
	w.records = w.records[:0]
	return err
}

func (w *Writer) load(ino Inode) (*record, error) {
	var r record
	if ino >= w.written {
		copy(r[:], w.records[int(ino-w.written)*inodeBytes:])
		return &r, nil
	}
	_, err := w.table.ReadAt(r[:], int64(ino)*inodeBytes)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return &r, err
}

func groupsFor(bytes int64) int64 {
	const group = groupBlocks * blockBytes
	return max(1, (bytes+group-1)/group)
}
