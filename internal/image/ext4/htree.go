package ext4

import (
	"encoding/binary"
	"math/bits"
)

// dirHash is the hash by which large directories are ordered: half of MD4, seeded, over
// names in pieces of 32 bytes. signed tells how a name's bytes become numbers.
func dirHash(name string, seed [4]uint32, signed bool) (major, minor uint32) {
	buf := seed
	for len(name) > 0 {
		var in [8]uint32
		hashWords(name, &in, signed)
		halfMD4(&buf, &in)
		name = name[min(len(name), 32):]
	}
	major = buf[1] &^ 1
	if major == 0xfffffffe { // means the end
		major = 0xfffffffc
	}
	return major, buf[2]
}

func hashWords(name string, out *[8]uint32, signed bool) {
	pad := uint32(len(name))
	pad |= pad << 8
	pad |= pad << 16
	for i := range out {
		out[i] = pad
	}
	v := pad
	n := min(len(name), 32)
	for i := range n {
		c := uint32(name[i])
		if signed {
			c = uint32(int32(int8(name[i])))
		}
		v = c + v<<8
		if i%4 == 3 {
			out[i/4] = v
			v = pad
		}
	}
	if n%4 != 0 {
		out[n/4] = v
	}
}

func halfMD4(buf *[4]uint32, in *[8]uint32) {
	type round struct {
		f     func(x, y, z uint32) uint32
		add   uint32
		order [8]int
		turn  [4]int
	}
	a, b, c, d := buf[0], buf[1], buf[2], buf[3]
	for _, r := range [3]round{
		{func(x, y, z uint32) uint32 { return z ^ x&(y^z) }, 0, [8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19}},
		{func(x, y, z uint32) uint32 { return x&y + (x^y)&z }, 0x5A827999, [8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13}},
		{func(x, y, z uint32) uint32 { return x ^ y ^ z }, 0x6ED9EBA1, [8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15}},
	} {
		for i, word := range r.order {
			t := bits.RotateLeft32(a+r.f(b, c, d)+in[word]+r.add, r.turn[i%4])
			a, b, c, d = d, t, b, c
		}
	}
	buf[0] += a
	buf[1] += b
	buf[2] += c
	buf[3] += d
}

// indexEntry is a child of an index block: all names of at least this hash, up to the next.
type indexEntry struct {
	hash  uint32
	block uint32
}

// putIndex encodes an index block's entries from start on, and the checksum behind the last
// that there is room for. The first entry's hash is not written: it is the lowest.
func putIndex(p []byte, start int, entries []indexEntry, seed uint32) {
	le := binary.LittleEndian
	limit := (blockBytes - start - 8) / 8
	for i, e := range entries {
		le.PutUint32(p[start+8*i:], e.hash)
		le.PutUint32(p[start+8*i+4:], e.block)
	}
	le.PutUint16(p[start:], uint16(limit))
	le.PutUint16(p[start+2:], uint16(len(entries)))
	tail := p[start+8*limit:]
	le.PutUint32(tail[4:], sum(sum(seed, p[:start+8*len(entries)]), tail[:8]))
}
