// Package channel makes a trustworthy, multiplexed session out of a carrier that either
// end may leave and rejoin at any moment while old bytes still lie in it: a virtio-serial
// port with a Unix socket at the host's side. It owns the handshake, the record layer and
// the mux; it knows nothing of what the streams are for.
//
// Handshake. The guest says hello(G) whenever it begins anew. The host knocks whenever
// it connects, on which the guest says hello with a new G. The host answers every hello(G)
// with answer(H, G), the guest takes only the answer that names its latest G and says
// ack(H, G), the host takes only the ack that names its H. G and H are fresh random
// numbers, so nothing written earlier can be taken for a reply.
//
// Records. From then on every byte travels in records that begin and end with tags drawn
// from G and H. A record is delivered only when it is whole and both tags fit: bytes of
// another session, or one torn by an end that went away, end the session and never reach a
// reader. That is why the host may knock at a guest that still believes in an older
// session (it missed the hang-up, or was restored from a snapshot): the knock is padded to
// the longest record, so it ends the old session at once, even in the middle of one.
package channel

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"banger/internal/guest/proto"
)

// ErrForeign ends a session in which bytes arrived that are not its own: the other end
// has gone, or begun anew.
var ErrForeign = errors.New("the other end of the channel began anew")

// ErrVersion is returned when the guest speaks another version of the protocol.
var ErrVersion = errors.New("the guest agent speaks another protocol version")

// Record layout: tag 8 | length of the payload 4 | payload | tag 8.
const (
	maxRecord   = 32 << 10 // what one write to a virtio-serial port takes
	headLen     = 12
	tailLen     = 8
	maxPayload  = maxRecord - headLen - tailLen
	readBufSize = 4 * maxRecord
)

// Host shakes hands as the host's end of carrier, for as long as ctx lives. The guest may
// come later than the host.
func Host(ctx context.Context, carrier net.Conn) (*Conn, error) {
	defer interruptible(ctx, carrier)()
	conn, err := hostShake(carrier)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("shake hands with the guest: %w", err)
	}
	return conn, nil
}

func hostShake(carrier net.Conn) (*Conn, error) {
	// Knock and answers go out in order, beside the reading: neither end ever waits for
	// the other to read first.
	answers := make(chan frame, 16)
	sent := make(chan error, 1)
	go func() { sent <- sendHost(carrier, answers) }()
	conn, err := hostScan(carrier, answers)
	close(answers)
	if err != nil {
		return nil, err // the caller closes the carrier, which ends the sender
	}
	return conn, <-sent
}

func sendHost(carrier net.Conn, answers <-chan frame) error {
	err := writePadded(carrier, frame{kind: knock, version: proto.Version})
	for f := range answers {
		if err == nil {
			_, err = carrier.Write(f.bytes())
		}
	}
	return err
}

func hostScan(carrier net.Conn, answers chan<- frame) (*Conn, error) {
	h := newNonce()
	in := scanner{r: carrier}
	for {
		f, err := in.next()
		if err != nil {
			return nil, err
		}
		switch {
		case f.kind == hello && f.version != proto.Version:
			return nil, ErrVersion
		case f.kind == hello:
			answers <- frame{kind: answer, version: proto.Version, a: h, b: f.a}
		case f.kind == ack && f.a == h:
			toGuest, toHost := tags(h, f.b)
			return newConn(carrier, in.buf, toHost, toGuest), nil
		}
	}
}

// Guest shakes hands as the guest's end of carrier. Its first write must block until a
// host is there. The same carrier may be used again after a session has ended.
func Guest(carrier net.Conn) (*Conn, error) {
	in := scanner{r: carrier}
	g := newNonce()
	// Padded like a knock: the host may still be in the middle of an old record.
	if err := writePadded(carrier, frame{kind: hello, version: proto.Version, a: g}); err != nil {
		return nil, fmt.Errorf("say hello: %w", err)
	}
	for {
		f, err := in.next()
		if err != nil {
			return nil, fmt.Errorf("wait for the host's answer: %w", err)
		}
		switch {
		case f.kind == knock:
			g = newNonce()
			if _, err := carrier.Write(frame{kind: hello, version: proto.Version, a: g}.bytes()); err != nil {
				return nil, fmt.Errorf("say hello: %w", err)
			}
		case f.kind == answer && f.b == g:
			if _, err := carrier.Write(frame{kind: ack, version: proto.Version, a: f.a, b: g}.bytes()); err != nil {
				return nil, fmt.Errorf("acknowledge the host: %w", err)
			}
			toGuest, toHost := tags(f.a, g)
			return newConn(carrier, in.buf, toGuest, toHost), nil
		}
	}
}

func writePadded(w io.Writer, f frame) error {
	_, err := w.Write(append(f.bytes(), make([]byte, maxRecord)...))
	return err
}

// interruptible makes reads and writes of carrier fail once ctx is done, until the
// returned function is called.
func interruptible(ctx context.Context, carrier net.Conn) func() {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		carrier.SetDeadline(time.Unix(1, 0))
		close(stopped)
	})
	return func() {
		if !stop() {
			<-stopped
		}
		carrier.SetDeadline(time.Time{})
	}
}

// tag marks the two ends of one direction's records.
type tag struct{ head, tail [8]byte }

// tags derives the session's tags from both nonces.
func tags(h, g nonce) (toGuest, toHost tag) {
	sum := sha256.Sum256(append(append([]byte("banger channel"), h[:]...), g[:]...))
	copy(toGuest.head[:], sum[0:])
	copy(toGuest.tail[:], sum[8:])
	copy(toHost.head[:], sum[16:])
	copy(toHost.tail[:], sum[24:])
	return toGuest, toHost
}

// Conn carries one session's bytes in records. One goroutine may read while another
// writes.
type Conn struct {
	net.Conn // the carrier: for Close, addresses and deadlines

	in      tag
	raw     []byte // read from the carrier, from the next record on
	store   []byte // raw's backing
	payload []byte // checked, not yet read; part of store before raw
	err     error

	out  tag
	wbuf []byte
}

// newConn makes a Conn whose first bytes are early, read along with the handshake.
func newConn(carrier net.Conn, early []byte, in, out tag) *Conn {
	c := &Conn{Conn: carrier, in: in, out: out, wbuf: make([]byte, 0, maxRecord)}
	c.store = make([]byte, max(readBufSize, len(early)))
	c.raw = c.store[:copy(c.store, early)]
	return c
}

// Read returns bytes of whole, checked records only.
func (c *Conn) Read(p []byte) (int, error) {
	for len(c.payload) == 0 && c.err == nil {
		c.err = c.readRecord()
	}
	if len(c.payload) == 0 {
		return 0, c.err
	}
	n := copy(p, c.payload)
	c.payload = c.payload[n:]
	return n, nil
}

func (c *Conn) readRecord() error {
	if err := c.fill(headLen); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(c.raw[8:])
	if [8]byte(c.raw) != c.in.head || size > maxPayload {
		return ErrForeign
	}
	end := headLen + int(size)
	if err := c.fill(end + tailLen); err != nil {
		return err
	}
	if [8]byte(c.raw[end:]) != c.in.tail {
		return ErrForeign
	}
	c.payload = c.raw[headLen:end]
	c.raw = c.raw[end+tailLen:]
	return nil
}

// fill reads until raw holds n bytes. The payload before raw must have been used up.
func (c *Conn) fill(n int) error {
	for len(c.raw) < n {
		if len(c.raw) == 0 || cap(c.raw) < n {
			c.raw = c.store[:copy(c.store, c.raw)]
		}
		got, err := c.Conn.Read(c.raw[len(c.raw):cap(c.raw)])
		c.raw = c.raw[:len(c.raw)+got]
		if err != nil && len(c.raw) < n {
			if err == io.EOF && len(c.raw) > 0 {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// Write sends p in as many records as it takes.
func (c *Conn) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		part := p[written:min(len(p), written+maxPayload)]
		c.wbuf = append(c.wbuf[:0], c.out.head[:]...)
		c.wbuf = binary.BigEndian.AppendUint32(c.wbuf, uint32(len(part)))
		c.wbuf = append(c.wbuf, part...)
		c.wbuf = append(c.wbuf, c.out.tail[:]...)
		if _, err := c.Conn.Write(c.wbuf); err != nil {
			return written, err
		}
		written += len(part)
	}
	return written, nil
}
