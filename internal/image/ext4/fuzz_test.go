package ext4

import (
	"bytes"
	"io"
	"os"
	"path"
	"testing"

	"golang.org/x/sys/unix"
)

// patched is a file with some bytes changed.
type patched struct {
	file  io.ReaderAt
	bytes map[int64]byte // by place
}

func (p patched) ReadAt(b []byte, at int64) (int, error) {
	n, err := p.file.ReadAt(b, at)
	for place, c := range p.bytes {
		if place >= at && place < at+int64(n) {
			b[place-at] = c
		}
	}
	return n, err
}

// FuzzReader changes bytes of a filesystem, and reads what is left of it: with errors at worst.
func FuzzReader(f *testing.F) {
	x := newWriting(f, 0)
	dir := x.mkdir(Top, "directory")
	for i := range 200 {
		x.file(dir, string(rune('a'+i%26))+string(rune('A'+i/26)), Attr{Xattrs: []Xattr{{"user.x", make([]byte, 200)}}}, &io.LimitedReader{R: endless{}, N: int64(i * 100)})
	}
	x.finish(Size{Bytes: 128 << 20})
	original, err := os.ReadFile(x.path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(1024+0x60), uint32(0x10000), uint32(0), uint32(0))
	f.Add(uint32(8400*4096), uint32(0xffff), uint32(135*4096), uint32(7))
	f.Add(uint32(1112), uint32(65670), uint32(54), uint32(207)) // an inode of 134 bytes
	f.Fuzz(func(t *testing.T, at, value, at2, value2 uint32) {
		img := patched{bytes.NewReader(original), map[int64]byte{}}
		for a, v := range map[uint32]uint32{at: value, at2: value2} {
			for i := range 4 {
				img.bytes[int64(a%(40<<20))+int64(i)] = byte(v >> (8 * i))
			}
		}
		r, err := NewReader(img)
		if err != nil {
			return
		}
		if s, err := r.Lookup("/directory/../directory/aA"); err == nil {
			io.Copy(io.Discard, io.LimitReader(r.Content(s), 1<<20))
		}
		for ino := Inode(1); ino < 300; ino++ {
			s, err := r.Stat(ino)
			if err != nil {
				continue
			}
			io.Copy(io.Discard, io.LimitReader(r.Content(s), 1<<20))
			if s.Mode&unix.S_IFMT == unix.S_IFLNK {
				r.Target(s)
			}
			n := 0
			for _, err := range r.Entries(s) {
				if n++; err != nil || n > 10_000 {
					break
				}
			}
		}
	})
}

// FuzzXattrs decodes attributes of any bytes, and encodes again what it finds.
func FuzzXattrs(f *testing.F) {
	block, _ := xattrBlock(1, 2, stored([]Xattr{{"user.a", []byte("b")}, {"security.capability", make([]byte, 20)}}))
	f.Add(block)
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) < 32 {
			return
		}
		found := getXattrs(p, 32, 0)
		xattrBlock(1, 2, stored(found))
		getXattrs(p, 4, 4)
	})
}

// FuzzListing reads what debugfs might say of a directory: nothing but what lies in it, by names that
// can be passed on to debugfs, comes of it.
func FuzzListing(f *testing.F) {
	f.Add("/2/040755/0/0/.//\n/2/040755/0/0/..//\n/13/100644/0/0/motd/12/\n/14/120777/0/0/a b/3/\n/0/000000/0/0/gone/0/\n")
	f.Fuzz(func(t *testing.T, listing string) {
		for _, file := range parseListing("/etc", listing) {
			if path.Dir(file.Path) != "/etc" || !plainPath.MatchString(file.Path) {
				t.Errorf("%q", file.Path)
			}
		}
	})
}
