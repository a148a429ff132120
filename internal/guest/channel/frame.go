package channel

import (
	"bytes"
	"crypto/rand"
	"hash/crc32"
	"io"

	"encoding/binary"
)

// kind says what a handshake frame is.
type kind byte

const (
	knock  kind = 1 + iota // host → guest, once per connection: say hello again
	hello                  // guest → host: a = G
	answer                 // host → guest: a = H, b = G
	ack                    // guest → host: a = H, b = G
)

// nonce is fresh for every opening of an end; nobody can foresee it, so no byte written
// before it was drawn can contain it.
type nonce [16]byte

func newNonce() (n nonce) {
	rand.Read(n[:]) // never fails, see its doc
	return n
}

// frame is a handshake message:
//
//	magic 8 | kind 1 | version 1 | zero 2 | a 16 | b 16 | crc32 of all before 4
type frame struct {
	kind    kind
	version byte
	a, b    nonce
}

// magic opens a frame. No record and no mux header begins with these bytes.
var magic = []byte("\xffbanger\xfe")

const frameLen = 8 + 4 + 16 + 16 + 4

func (f frame) bytes() []byte {
	buf := make([]byte, 0, frameLen)
	buf = append(buf, magic...)
	buf = append(buf, byte(f.kind), f.version, 0, 0)
	buf = append(buf, f.a[:]...)
	buf = append(buf, f.b[:]...)
	return binary.BigEndian.AppendUint32(buf, crc32.ChecksumIEEE(buf))
}

// parseFrame decodes the frame at the start of buf, which holds at least frameLen bytes.
func parseFrame(buf []byte) (f frame, ok bool) {
	buf = buf[:frameLen]
	body, sum := buf[:frameLen-4], binary.BigEndian.Uint32(buf[frameLen-4:])
	if !bytes.HasPrefix(buf, magic) || crc32.ChecksumIEEE(body) != sum {
		return frame{}, false
	}
	f.kind, f.version = kind(buf[8]), buf[9]
	copy(f.a[:], buf[12:])
	copy(f.b[:], buf[28:])
	return f, true
}

// scanner finds frames among any other bytes.
type scanner struct {
	r   io.Reader
	buf []byte // read and not yet looked at
}

// next returns the next whole frame and drops everything before it. What follows the
// frame stays in buf.
func (s *scanner) next() (frame, error) {
	chunk := make([]byte, 4096)
	for {
		if f, ok := s.take(); ok {
			return f, nil
		}
		n, err := s.r.Read(chunk)
		s.buf = append(s.buf, chunk[:n]...)
		if err != nil && n == 0 {
			return frame{}, err
		}
	}
}

// take consumes the first frame in buf. Without one it keeps only what may be the start
// of a frame.
func (s *scanner) take() (frame, bool) {
	for {
		i := bytes.Index(s.buf, magic)
		if i < 0 {
			s.buf = s.buf[max(0, len(s.buf)-len(magic)+1):]
			return frame{}, false
		}
		s.buf = s.buf[i:]
		if len(s.buf) < frameLen {
			return frame{}, false
		}
		if f, ok := parseFrame(s.buf); ok {
			s.buf = s.buf[frameLen:]
			return f, true
		}
		s.buf = s.buf[1:] // a torn frame: the next may begin inside it
	}
}
