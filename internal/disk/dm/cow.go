package dm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
)

// The file of changes is what the kernel's persistent exception store reads and writes
// (drivers/md/dm-snap-persistent.c); all numbers are little-endian. A first chunk with the
// header is followed by areas: a chunk of 256 entries, each of which says what chunk of the
// disk is kept where, then the 256 chunks that they speak of.
const (
	chunkSectors = 8
	chunkBytes   = chunkSectors * disk.SectorBytes
	entryBytes   = 16
	areaEntries  = chunkBytes / entryBytes
	areaBytes    = (1 + areaEntries) * chunkBytes

	cowMagic   = 0x70416e53 // "SnAp"
	cowVersion = 1

	// maxCow bounds the file, in bytes: ext4 has no larger ones than 16 TiB.
	maxCow = 8 << 40
)

// validAt is where the header says whether the kernel has given the snapshot up, which it
// does when a write to the file fails.
const validAt = 4

// cowBytes is the length of the file for a disk of that many bytes: room for every chunk,
// so that only the host's filesystem can ever be full. It is a hole but for what is used.
func cowBytes(virtualBytes int64) int64 {
	chunks := (virtualBytes + chunkBytes - 1) / chunkBytes
	areas := (chunks+areaEntries-1)/areaEntries + 1 // the kernel prepares the next area with the last entry of one
	return min(chunkBytes+areas*areaBytes, maxCow)
}

// writeCow makes f the file of changes of a disk that has none yet. Written here, the header
// tells a file that was emptied by hand from a new one, which the kernel would not.
func writeCow(f *os.File, virtualBytes int64) error {
	if err := f.Truncate(cowBytes(virtualBytes)); err != nil {
		return err
	}
	var header []byte
	for _, word := range []uint32{cowMagic, 1, cowVersion, chunkSectors} { // the second: it is valid
		header = binary.LittleEndian.AppendUint32(header, word)
	}
	// Written whole, the kernel can write it again when there is no room for anything else.
	_, err := f.WriteAt(append(header, make([]byte, chunkBytes-len(header))...), 0)
	return err
}

// checkCow refuses a file of changes that the kernel would misread.
func checkCow(r io.ReaderAt) error {
	var header [16]byte
	if _, err := r.ReadAt(header[:], 0); err != nil {
		return err
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(header[4*i:]) }
	switch {
	case word(0) != cowMagic:
		return errors.New("its file does not begin as one of changes does")
	case word(2) != cowVersion || word(3) != chunkSectors:
		return fmt.Errorf("its file has version %d and chunks of %d sectors, not %d and %d", word(2), word(3), cowVersion, chunkSectors)
	}
	return nil
}

// revive makes a file good again that the kernel has given up. It gives up a snapshot as a
// whole since the writes under way are of unknown state. But an entry is written only after
// the chunk that it speaks of, and no write was acknowledged since, so what the file holds is
// what a power cut at that moment would have left.
func revive(f *os.File) error {
	_, err := f.WriteAt([]byte{1, 0, 0, 0}, validAt)
	return err
}

// entries yields the chunks of the disk that a file of changes has an entry of: where each is
// on the disk and where it is kept, in bytes. The kernel, which gives out the places in the
// file one after another, may be at work on it.
func entries(r io.ReaderAt, fileBytes int64, yield func(offset, place int64) error) error {
	area := make([]byte, chunkBytes)
	for at := int64(chunkBytes); at+areaBytes <= fileBytes; at += areaBytes {
		if _, err := r.ReadAt(area, at); err != nil {
			return err
		}
		for e := area; len(e) > 0; e = e[entryBytes:] {
			place := int64(binary.LittleEndian.Uint64(e[8:])) * chunkBytes
			if place == 0 { // never in the header's chunk
				return nil
			}
			if err := yield(int64(binary.LittleEndian.Uint64(e))*chunkBytes, place); err != nil {
				return err
			}
		}
	}
	return nil
}

// data finds holes in a file, asked for places that mostly grow.
type data struct {
	f          *os.File
	start, end int64 // the range last found that is no hole
}

// at tells whether there is data at this place of the file. What the guest discards becomes a
// hole, though its entry stays.
func (d *data) at(place int64) (bool, error) {
	if place < d.start || place >= d.end {
		start, err := d.f.Seek(place, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // none from here on
			return false, nil
		}
		if err != nil {
			return false, err
		}
		end, err := d.f.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return false, err
		}
		d.start, d.end = start, end
	}
	return place >= d.start, nil
}
