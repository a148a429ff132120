package channel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"banger/internal/guest/proto"

	"pgregory.net/rapid"
)

// switchboard is a virtio-serial port without luck: the guest never learns that a host has
// gone, what a host wrote before it went still arrives, and a write may be torn.
type switchboard struct {
	mu      sync.Mutex
	changed *sync.Cond
	toGuest []byte
	host    *hostConn // nil: nobody there, the guest's writes wait
	closed  bool      // the guest's end
}

func newSwitchboard() *switchboard {
	s := &switchboard{}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// hostConn is the end of one connection by a host.
type hostConn struct {
	net.Conn // nil: only the methods below are used
	s        *switchboard
	toHost   []byte
	room     int // bytes that the guest may still write before this host goes; <0: no limit
	gone     bool
}

func (s *switchboard) attach(room int) *hostConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &hostConn{s: s, room: room}
	s.host = h
	s.changed.Broadcast()
	return h
}

func (h *hostConn) SetDeadline(t time.Time) error {
	if !t.IsZero() {
		h.Close()
	}
	return nil
}

func (h *hostConn) Close() error {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	h.leave()
	return nil
}

func (h *hostConn) leave() {
	h.gone = true
	if h.s.host == h {
		h.s.host = nil
	}
	h.s.changed.Broadcast()
}

func (h *hostConn) Write(p []byte) (int, error) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.gone {
		return 0, net.ErrClosed
	}
	h.s.toGuest = append(h.s.toGuest, p...)
	h.s.changed.Broadcast()
	return len(p), nil
}

func (h *hostConn) Read(p []byte) (int, error) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	for len(h.toHost) == 0 {
		if h.gone {
			return 0, io.EOF
		}
		h.s.changed.Wait()
	}
	n := copy(p, h.toHost)
	h.toHost = h.toHost[n:]
	return n, nil
}

// guestConn is the guest's end; there is one for all hosts.
type guestConn struct {
	net.Conn // nil
	*switchboard
}

func (g guestConn) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.changed.Broadcast()
	return nil
}

func (g guestConn) Read(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.toGuest) == 0 {
		if g.closed {
			return 0, net.ErrClosed
		}
		g.changed.Wait()
	}
	n := copy(p, g.toGuest)
	g.toGuest = g.toGuest[n:]
	return n, nil
}

func (g guestConn) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	written := 0
	for written < len(p) {
		if g.closed {
			return written, net.ErrClosed
		}
		h := g.host
		if h == nil {
			g.changed.Wait()
			continue
		}
		n := len(p) - written
		if h.room >= 0 {
			n = min(n, h.room)
			h.room -= n
		}
		h.toHost = append(h.toHost, p[written:written+n]...)
		written += n
		if h.room == 0 {
			h.leave()
		}
		g.changed.Broadcast()
	}
	return written, nil
}

// echoGuest serves session after session, as the agent does, and sends back what it reads.
// Everything that any session delivered is kept.
func echoGuest(s *switchboard) (delivered func() []byte, done <-chan struct{}) {
	var mu sync.Mutex
	var all []byte
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := Guest(guestConn{switchboard: s})
			if err != nil {
				return
			}
			buf := make([]byte, 1000)
			for {
				n, err := c.Read(buf)
				mu.Lock()
				all = append(all, buf[:n]...)
				mu.Unlock()
				if err != nil {
					break
				}
				if _, err := c.Write(buf[:n]); err != nil {
					break
				}
			}
		}
	}()
	return func() []byte { mu.Lock(); defer mu.Unlock(); return bytes.Clone(all) }, ended
}

// Whatever lies in the port, and however hosts come and go, a host that stays gets a
// session in which it reads exactly what was sent to it, and the guest never reads a byte
// that no host sent in the session it was in.
func TestSessionsNeverMix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSwitchboard()
		s.toGuest = rapid.OneOf(rapid.SliceOfN(rapid.Byte(), 0, 200), rapid.Just(oldHandshake())).Draw(t, "stale bytes")
		delivered, done := echoGuest(s)
		hosts := rapid.IntRange(1, 6).Draw(t, "hosts")
		for i := range hosts {
			last := i == hosts-1
			room := -1
			if !last {
				room = rapid.SampledFrom([]int{-1, 0, 10, frameLen, frameLen + 5, maxRecord, maxRecord + frameLen,
					maxRecord + 2*frameLen, maxRecord + 3*frameLen + 20}).Draw(t, "guest's bytes before this host goes")
			}
			h := s.attach(room)
			payload := bytes.Repeat([]byte{'a' + byte(i)}, rapid.SampledFrom([]int{1, 30, 3000, maxPayload, 2*maxPayload + 7}).Draw(t, "size"))
			err := talk(t, h, payload)
			if last && err != nil {
				t.Fatalf("the host that stayed: %v", err)
			}
			// Some go in the middle of a record.
			if !last && rapid.Bool().Draw(t, "tear") {
				h.Write([]byte("\x01\x02\x03 the beginning of something"))
			}
			h.Close()
		}
		guestConn{switchboard: s}.Close()
		<-done
		for _, b := range delivered() {
			if b < 'a' || b >= 'a'+byte(hosts) {
				t.Fatalf("the guest read %q, which nobody sent", b)
			}
		}
	})
}

// talk shakes hands as a host, sends payload and expects its echo.
func talk(t *rapid.T, h *hostConn, payload []byte) error {
	c, err := Host(context.Background(), h)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(payload)
		sent <- err
	}()
	back := make([]byte, len(payload))
	n, err := io.ReadFull(c, back)
	if !bytes.Equal(back[:n], payload[:n]) {
		t.Fatalf("the host read what was not sent to it")
	}
	return errors.Join(err, <-sent)
}

// oldHandshake is what an earlier host and an earlier session left.
func oldHandshake() []byte {
	h, g := newNonce(), newNonce()
	old := frame{kind: knock, version: proto.Version}.bytes()
	old = append(old, frame{kind: answer, version: proto.Version, a: h, b: g}.bytes()...)
	old = append(old, bytes.Repeat([]byte("old data"), 100)...)
	return append(old, frame{kind: answer, version: proto.Version, a: h, b: g}.bytes()[:20]...)
}

func TestHostGivesUpWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	h := newSwitchboard().attach(-1)
	cancel(why)
	if _, err := Host(ctx, h); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

func TestHostRefusesAnotherVersion(t *testing.T) {
	s := newSwitchboard()
	h := s.attach(-1)
	go guestConn{switchboard: s}.Write(frame{kind: hello, version: proto.Version + 1, a: newNonce()}.bytes())
	if _, err := Host(t.Context(), h); !errors.Is(err, ErrVersion) {
		t.Errorf("got %v", err)
	}
}

// input is a carrier that holds fixed bytes and takes any.
type input struct {
	net.Conn // nil
	io.Reader
}

func (i input) Read(p []byte) (int, error)  { return i.Reader.Read(p) }
func (i input) Write(p []byte) (int, error) { return len(p), nil }

// No bytes that were written without knowledge of this handshake's nonces complete it.
func FuzzHandshake(f *testing.F) {
	f.Add(oldHandshake())
	f.Add(frame{kind: hello, version: proto.Version}.bytes())
	f.Add(append([]byte("\xffbang\xffbanger\xfe"), frame{kind: ack, version: proto.Version}.bytes()...))
	f.Fuzz(func(t *testing.T, stale []byte) {
		if _, err := Guest(input{Reader: bytes.NewReader(stale)}); err == nil {
			t.Error("the guest took old bytes for an answer")
		}
		if _, err := hostShake(input{Reader: bytes.NewReader(stale)}); err == nil {
			t.Error("the host took old bytes for an acknowledgement")
		}
	})
}

// A frame is found wherever it lies.
func FuzzScanner(f *testing.F) {
	f.Add([]byte("x"), []byte("\xffbanger\xfe"), 1)
	f.Add(frame{kind: hello}.bytes()[:30], []byte{0, 0}, 7)
	f.Fuzz(func(t *testing.T, before, after []byte, chunk int) {
		want := frame{kind: ack, version: 9, a: newNonce(), b: newNonce()}
		stream := bytes.Join([][]byte{before, want.bytes(), after}, nil)
		in := scanner{r: &chunks{stream, 1 + max(0, chunk)%5000}}
		for {
			got, err := in.next()
			if err != nil {
				t.Fatal("the frame was not found")
			}
			if got == want {
				return // before may hold frames of its own
			}
		}
	})
}

// chunks reads a few bytes at a time.
type chunks struct {
	data []byte
	size int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size)], c.data)
	c.data = c.data[n:]
	return n, nil
}

// Foreign bytes after any number of good records never reach the reader.
func FuzzForeignBytes(f *testing.F) {
	toGuest, _ := tags(nonce{1}, nonce{2})
	f.Add([]byte("hello"), []byte("foreign bytes"), 0)
	f.Add([]byte("hello"), frame{kind: knock}.bytes(), 3)
	f.Add([]byte{}, toGuest.head[:], 0)
	f.Fuzz(func(t *testing.T, good, foreign []byte, cut int) {
		var wire bytes.Buffer
		w := newConn(input{}, nil, tag{}, toGuest)
		w.Conn = sink{&wire}
		w.Write(good)
		whole := wire.Len()
		w.Write(good)
		torn := wire.Bytes()[:whole+max(0, cut)%(wire.Len()-whole+1)]
		if len(torn) == wire.Len() {
			good = append(bytes.Clone(good), good...)
		}
		if bytes.Contains(foreign, toGuest.tail[:]) {
			return // it knows the secret
		}
		r := newConn(input{Reader: io.MultiReader(bytes.NewReader(torn), bytes.NewReader(foreign))}, nil, toGuest, tag{})
		got, err := io.ReadAll(r)
		if !bytes.Equal(got, good) || (len(foreign) > 0 && err == nil) {
			t.Errorf("read %q, %v; want %q and an error", got, err, good)
		}
	})
}

type sink struct{ *bytes.Buffer }

func (sink) Close() error                       { return nil }
func (sink) LocalAddr() net.Addr                { return nil }
func (sink) RemoteAddr() net.Addr               { return nil }
func (sink) SetDeadline(time.Time) error        { return nil }
func (sink) SetReadDeadline(t time.Time) error  { return nil }
func (sink) SetWriteDeadline(t time.Time) error { return nil }
