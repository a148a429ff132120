package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
)

// The format is QEMU's docs/interop/qcow2.txt, version 3; all numbers are big-endian.
const (
	magic   = 0x514649fb // "QFI\xfb"
	version = 3

	// clusterBits and extended L2 entries go together: tables are per 128 KiB, data is
	// allocated per 1/32 of that, 4 KiB, so that a 4 KiB write costs about 4 KiB.
	clusterBits  = 17
	clusterBytes = 1 << clusterBits

	incompatDirty      = 1 << 0 // refcounts are to be rebuilt: QEMU sets and clears it
	incompatCorrupt    = 1 << 1 // QEMU has found it broken and opens it read-only
	incompatExtendedL2 = 1 << 4

	l2EntryBytes = 16                          // with extended L2; half of it is the subcluster bitmap
	l2Covers     = clusterBytes / l2EntryBytes // clusters
	l1Covers     = l2Covers * clusterBytes     // bytes of the disk per L1 entry: 1 GiB

	refcountOrder = 4 // 2^4 bits each

	headerBytes     = 104 // without the compression type
	headerBytesZlib = 112 // with it, as QEMU writes when it rewrites a header

	extensionEnd           = 0
	extensionBackingFormat = 0xe2792aca

	maxBackingName = 1023
)

// rawHeader is the fixed part of the header, in file order.
type rawHeader struct {
	Magic                 uint32
	Version               uint32
	BackingFileOffset     uint64
	BackingFileSize       uint32
	ClusterBits           uint32
	Size                  uint64
	CryptMethod           uint32
	L1Size                uint32
	L1TableOffset         uint64
	RefcountTableOffset   uint64
	RefcountTableClusters uint32
	NbSnapshots           uint32
	SnapshotsOffset       uint64
	IncompatibleFeatures  uint64
	CompatibleFeatures    uint64
	AutoclearFeatures     uint64
	RefcountOrder         uint32
	HeaderLength          uint32
}

// Header is what an overlay says of itself.
type Header struct {
	VirtualBytes  int64
	Backing       string // absolute path of the base
	BackingFormat string // raw or qcow2
	Dirty         bool   // not closed properly; QEMU repairs it when it opens it
	Corrupt       bool   // QEMU has found inconsistent tables
}

// errTorn says that a file is a beginning of an overlay only: parts that Clone writes
// are still zero.
var errTorn = errors.New("it was never written wholly")

// layout says where Clone puts things, in clusters: the header, the refcount table, one
// refcount block, then the L1 table. One block counts 65536 clusters, and no table needs
// more than a few; QEMU adds blocks as the file grows.
const (
	refcountTableCluster = 1
	refcountBlockCluster = 2
	l1Cluster            = 3
)

// encode gives what a new overlay consists of: the pieces of it that are not zero, and
// the file's length. virtualBytes is a whole number of sectors.
func encode(virtualBytes int64, backing, format string) (pieces []piece, fileBytes int64, err error) {
	if len(backing) > maxBackingName {
		return nil, 0, longName(backing)
	}
	l1Entries := (virtualBytes + l1Covers - 1) / l1Covers
	clusters := l1Cluster + (l1Entries*8+clusterBytes-1)/clusterBytes

	var head bytes.Buffer
	extensions := encodeExtension(extensionBackingFormat, []byte(format))
	extensions = append(extensions, encodeExtension(extensionEnd, nil)...)
	fixed := rawHeader{
		Magic: magic, Version: version,
		BackingFileOffset: uint64(headerBytes + len(extensions)), BackingFileSize: uint32(len(backing)),
		ClusterBits: clusterBits, Size: uint64(virtualBytes),
		L1Size: uint32(l1Entries), L1TableOffset: l1Cluster * clusterBytes,
		RefcountTableOffset: refcountTableCluster * clusterBytes, RefcountTableClusters: 1,
		IncompatibleFeatures: incompatExtendedL2,
		RefcountOrder:        refcountOrder, HeaderLength: headerBytes,
	}
	if err := binary.Write(&head, binary.BigEndian, fixed); err != nil {
		return nil, 0, err
	}
	head.Write(extensions)
	head.WriteString(backing)

	table := binary.BigEndian.AppendUint64(nil, refcountBlockCluster*clusterBytes)
	var counts []byte
	for range clusters {
		counts = binary.BigEndian.AppendUint16(counts, 1)
	}
	return []piece{
		{0, head.Bytes()},
		{refcountTableCluster * clusterBytes, table},
		{refcountBlockCluster * clusterBytes, counts},
	}, clusters * clusterBytes, nil
}

func longName(backing string) error {
	return fmt.Errorf("the base's path has %d bytes, and qcow2 has room for %d", len(backing), maxBackingName)
}

// piece is bytes at an offset of a file.
type piece struct {
	offset int64
	data   []byte
}

func encodeExtension(kind uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	b = append(b, data...)
	return append(b, make([]byte, (8-len(data)%8)%8)...) // padded to 8 bytes
}

// ReadHeader reads and checks the header of an overlay of this driver. It refuses all
// that the driver does not make and QEMU does not make of it, above all references to
// files by anything but one absolute path: whoever can write the overlay must not choose
// what the next QEMU opens. Whether that path is the right one the caller has to know.
func ReadHeader(path string) (Header, error) {
	// Without O_NONBLOCK a FIFO in its place would hold the open for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return Header{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Header{}, err
	}
	if !info.Mode().IsRegular() {
		return Header{}, errors.New("it is no regular file")
	}
	return parse(f, info.Size())
}

// headBytes is what is read of the first cluster: the base's name, which both QEMU and we
// write close behind the fixed part, lies in it. Lists of many disks read it of each.
const headBytes = 4 << 10

// parse is ReadHeader on a file of the given length in bytes.
func parse(r io.ReaderAt, fileBytes int64) (Header, error) {
	h, err := parseRaw(r, fileBytes)
	if err != nil {
		return Header{}, err
	}
	return Header{
		VirtualBytes: int64(h.Size), Backing: h.name, BackingFormat: h.format,
		Dirty:   h.IncompatibleFeatures&incompatDirty != 0,
		Corrupt: h.IncompatibleFeatures&incompatCorrupt != 0,
	}, nil
}

// parsed is a header that has passed every check.
type parsed struct {
	rawHeader
	name, format string // of the backing file
}

func parseRaw(r io.ReaderAt, fileBytes int64) (h parsed, err error) {
	first := make([]byte, min(headBytes, max(fileBytes, 0)))
	if _, err := r.ReadAt(first, 0); err != nil {
		return h, err
	}
	if len(first) < headerBytes || !bytes.ContainsFunc(first[:headerBytes], func(c rune) bool { return c != 0 }) {
		return h, errTorn
	}
	if err := binary.Read(bytes.NewReader(first), binary.BigEndian, &h.rawHeader); err != nil {
		return h, err
	}
	if err := h.check(fileBytes); err != nil {
		return h, err
	}
	if h.HeaderLength == headerBytesZlib && (len(first) < headerBytesZlib || first[headerBytes] != 0) {
		return h, errors.New("its compression is not zlib")
	}
	if h.name, h.format, err = h.backing(first); err != nil {
		return h, err
	}
	return h, h.checkRefcounts(r)
}

// check checks the numbers of the fixed part against each other and the file's length.
func (h *rawHeader) check(fileBytes int64) error {
	const known = incompatDirty | incompatCorrupt | incompatExtendedL2
	inFile := func(offset uint64, n uint64) bool {
		return offset >= clusterBytes && offset%clusterBytes == 0 && offset < uint64(fileBytes) && n <= uint64(fileBytes)-offset
	}
	switch {
	case h.Magic != magic:
		return errors.New("it is no qcow2 file")
	case h.Version != version:
		return fmt.Errorf("its version is %d, not %d", h.Version, version)
	case h.ClusterBits != clusterBits:
		return fmt.Errorf("its clusters have 2^%d bytes, not 2^%d", h.ClusterBits, clusterBits)
	case h.IncompatibleFeatures&^known != 0 || h.IncompatibleFeatures&incompatExtendedL2 == 0:
		return fmt.Errorf("its incompatible features are %#x", h.IncompatibleFeatures)
	case h.HeaderLength != headerBytes && h.HeaderLength != headerBytesZlib:
		return fmt.Errorf("its header has %d bytes", h.HeaderLength)
	case h.Size == 0 || h.Size%disk.SectorBytes != 0 || h.Size > disk.MaxBytes:
		return fmt.Errorf("its virtual size is %d bytes", h.Size)
	case h.CryptMethod != 0:
		return errors.New("it is encrypted")
	case h.NbSnapshots != 0:
		return fmt.Errorf("it has %d internal snapshots", h.NbSnapshots)
	case h.RefcountOrder != refcountOrder:
		return fmt.Errorf("its refcounts have 2^%d bits", h.RefcountOrder)
	case uint64(h.L1Size) < (h.Size+l1Covers-1)/l1Covers || h.L1Size > disk.MaxBytes/l1Covers:
		return fmt.Errorf("its L1 table has %d entries for %d bytes", h.L1Size, h.Size)
	case !inFile(h.L1TableOffset, uint64(h.L1Size)*8):
		return fmt.Errorf("its L1 table at %d is not in its %d bytes", h.L1TableOffset, fileBytes)
	case h.RefcountTableClusters == 0 || !inFile(h.RefcountTableOffset, uint64(h.RefcountTableClusters)*clusterBytes):
		return fmt.Errorf("its refcount table at %d is not in its %d bytes", h.RefcountTableOffset, fileBytes)
	}
	return nil
}

// backing finds the backing file's name and format, which have to be given.
func (h *rawHeader) backing(first []byte) (path, format string, err error) {
	start, n := h.BackingFileOffset, uint64(h.BackingFileSize)
	if start < uint64(h.HeaderLength) || n == 0 || n > maxBackingName || start > uint64(len(first)) || n > uint64(len(first))-start {
		return "", "", fmt.Errorf("the name of its base is %d bytes at %d", n, start)
	}
	// The name follows the extensions.
	if format, err = backingFormat(first[h.HeaderLength:start]); err != nil {
		return "", "", err
	}
	if format != "raw" && format != name {
		return "", "", fmt.Errorf("the format of its base is %q, neither raw nor qcow2", format)
	}
	path = string(first[start : start+n])
	// QEMU takes "word:" at the front for a protocol, and a relative name for one beside it.
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return "", "", fmt.Errorf("the name of its base, %q, is no absolute path", path)
	}
	return path, format, nil
}

// backingFormat reads a sequence of header extensions: type, length, data padded to 8
// bytes. Those it doesn't know are optional by the format's rules.
func backingFormat(b []byte) (format string, err error) {
	for len(b) >= 8 {
		kind, n := binary.BigEndian.Uint32(b), uint64(binary.BigEndian.Uint32(b[4:]))
		b = b[8:]
		if kind == extensionEnd {
			return format, nil
		}
		padded := (n + 7) / 8 * 8
		if padded > uint64(len(b)) {
			return "", errors.New("a header extension is longer than the header")
		}
		if kind == extensionBackingFormat {
			format = string(b[:n])
		}
		b = b[padded:]
	}
	return "", errors.New("its header extensions have no end")
}

// checkRefcounts finds an overlay of which the header reached the disk at a power cut and
// the rest did not: its first cluster, the header, has to be counted.
func (h *rawHeader) checkRefcounts(r io.ReaderAt) error {
	b := make([]byte, 8)
	if _, err := r.ReadAt(b, int64(h.RefcountTableOffset)); err != nil {
		return err
	}
	block := binary.BigEndian.Uint64(b)
	if block == 0 {
		return errTorn
	}
	if block%clusterBytes != 0 || block > disk.MaxBytes {
		return fmt.Errorf("its first refcount block is at %d", block)
	}
	if _, err := r.ReadAt(b[:2], int64(block)); err != nil {
		return err
	}
	if binary.BigEndian.Uint16(b) == 0 {
		return errTorn
	}
	return nil
}
