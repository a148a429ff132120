package ext4

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strings"
)

// Xattr is an extended attribute by its full name.
type Xattr struct {
	Name  string
	Value []byte
}

const (
	xattrMagic = 0xEA020000
	inodeXattr = inodeBytes - 128 - extraBytes // bytes behind the fields of an inode
	extraBytes = 32
)

// xattrPrefixes are the beginnings of names that the format has a number for. No other
// names can be kept. The ACLs are whole names, and are encoded in a way of their own.
var xattrPrefixes = []struct {
	index  byte
	prefix string
}{
	{2, aclAccess}, {3, aclDefault}, {1, "user."}, {4, "trusted."}, {6, "security."}, {7, "system."},
}

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

type storedXattr struct {
	index byte
	name  string // without its prefix
	value []byte
}

func (x storedXattr) entryBytes() int { return 16 + (len(x.name)+3)&^3 }
func (x storedXattr) valueBytes() int { return (len(x.value) + 3) &^ 3 }

// stored sorts attributes as the format wants them and leaves out those it has no place for.
func stored(xattrs []Xattr) []storedXattr {
	var out []storedXattr
	for _, x := range xattrs {
		for _, p := range xattrPrefixes {
			name, ok := strings.CutPrefix(x.Name, p.prefix)
			acl := p.index == 2 || p.index == 3
			if !ok || acl != (name == "") || len(name) > maxName {
				continue
			}
			value := x.Value
			if acl {
				value, ok = storedACL(value)
			}
			if ok {
				out = append(out, storedXattr{p.index, name, value})
			}
			break
		}
	}
	slices.SortFunc(out, func(a, b storedXattr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	return out
}

// putXattrs lays attributes out in p: entries from start on, values from the end down.
// Their offsets count from base. It returns false if there is no room; the entries end with
// four zero bytes.
func putXattrs(p []byte, start, base int, xattrs []storedXattr) bool {
	le := binary.LittleEndian
	at, value := start, len(p)
	for _, x := range xattrs {
		value -= x.valueBytes()
		if at+x.entryBytes()+4 > value {
			return false
		}
		e := p[at:]
		e[0], e[1] = byte(len(x.name)), x.index
		if len(x.value) > 0 {
			le.PutUint16(e[2:], uint16(value-base))
		}
		le.PutUint32(e[8:], uint32(len(x.value)))
		copy(e[16:], x.name)
		copy(p[value:], x.value)
		le.PutUint32(e[12:], x.hash())
		at += x.entryBytes()
	}
	return true
}

// hash is the entry's hash, over its name and its value in words of four bytes.
func (x storedXattr) hash() uint32 {
	var h uint32
	for _, c := range []byte(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(c)
	}
	padded := make([]byte, x.valueBytes())
	copy(padded, x.value)
	for i := 0; i < len(padded); i += 4 {
		h = h<<16 ^ h>>16 ^ binary.LittleEndian.Uint32(padded[i:])
	}
	return h
}

// xattrBlock makes the block of attributes that is to lie at place.
func xattrBlock(seed uint32, place uint64, xattrs []storedXattr) ([]byte, bool) {
	le := binary.LittleEndian
	p := make([]byte, blockBytes)
	if !putXattrs(p, 32, 0, xattrs) {
		return nil, false
	}
	le.PutUint32(p[0:], xattrMagic)
	le.PutUint32(p[4:], 1) // inodes that use it
	le.PutUint32(p[8:], 1) // blocks
	var all uint32
	for _, x := range xattrs {
		all = all<<16 ^ all>>16 ^ x.hash()
	}
	le.PutUint32(p[12:], all)
	var number [8]byte
	le.PutUint64(number[:], place)
	le.PutUint32(p[16:], sum(sum(seed, number[:]), p))
	return p, true
}

// getXattrs decodes entries of p from start on. Damage ends the list.
func getXattrs(p []byte, start, base int) []Xattr {
	le := binary.LittleEndian
	var out []Xattr
	for at := start; at+16 <= len(p) && le.Uint32(p[at:]) != 0; {
		n, index := int(p[at]), p[at+1]
		value, size := int(le.Uint16(p[at+2:]))+base, int(le.Uint32(p[at+8:]))
		if at+16+n > len(p) || size > len(p) || value+size > len(p) || le.Uint32(p[at+4:]) != 0 {
			return out
		}
		x := Xattr{Name: string(p[at+16 : at+16+n]), Value: slices.Clone(p[value : value+size])}
		at += 16 + (n+3)&^3
		i := slices.IndexFunc(xattrPrefixes, func(q struct {
			index  byte
			prefix string
		}) bool {
			return q.index == index
		})
		if i < 0 {
			continue
		}
		ok := true
		if index == 2 || index == 3 {
			x.Value, ok = givenACL(x.Value)
		}
		if x.Name = xattrPrefixes[i].prefix + x.Name; ok {
			out = append(out, x)
		}
	}
	return out
}

// An ACL's entries are tag, permissions and id: the kernel gives and takes 2+2+4 bytes each
// behind a version of 2; on disk it is 1, and only users and groups by name have an id.
const (
	aclUser  = 0x02
	aclGroup = 0x08
)

func storedACL(given []byte) ([]byte, bool) {
	le := binary.LittleEndian
	if len(given) < 4 || le.Uint32(given) != 2 || len(given)%8 != 4 {
		return nil, false
	}
	out := []byte{1, 0, 0, 0}
	for e := given[4:]; len(e) > 0; e = e[8:] {
		out = append(out, e[:4]...)
		if tag := le.Uint16(e); tag == aclUser || tag == aclGroup {
			out = append(out, e[4:8]...)
		}
	}
	return out, true
}

func givenACL(stored []byte) ([]byte, bool) {
	le := binary.LittleEndian
	if len(stored) < 4 || le.Uint32(stored) != 1 {
		return nil, false
	}
	out := []byte{2, 0, 0, 0}
	for e := stored[4:]; len(e) > 0; {
		if len(e) < 4 {
			return nil, false
		}
		tag := le.Uint16(e)
		out = append(out, e[:4]...)
		e = e[4:]
		if tag != aclUser && tag != aclGroup {
			out = append(out, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		if len(e) < 4 {
			return nil, false
		}
		out = append(out, e[:4]...)
		e = e[4:]
	}
	return out, true
}
