package channel

import (
	"io"
	"net"
	"strings"
	"testing"
)

// muxes returns both ends of a session.
func muxes(t *testing.T) (host, guest *Mux) {
	t.Helper()
	a, b := net.Pipe()
	ready := make(chan *Conn, 1)
	go func() {
		c, err := Guest(b)
		if err != nil {
			t.Error(err)
		}
		ready <- c
	}()
	c, err := Host(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	host, guest = NewHostMux(c), NewGuestMux(<-ready)
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}

func streams(t *testing.T) (opened, accepted *Stream) {
	t.Helper()
	host, guest := muxes(t)
	opened, err := host.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if accepted, err = guest.Accept(); err != nil {
		t.Fatal(err)
	}
	return opened, accepted
}

func TestStreamDirectionsEndSeparately(t *testing.T) {
	a, b := streams(t)
	io.WriteString(a, "question")
	a.CloseWrite()
	if got, err := io.ReadAll(b); err != nil || string(got) != "question" {
		t.Fatalf("got %q, %v", got, err)
	}
	io.WriteString(b, "answer")
	b.CloseWrite()
	if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestStreamCloseDeliversThenRefuses(t *testing.T) {
	a, b := streams(t)
	last := strings.Repeat("last words", 1000)
	io.WriteString(a, last)
	a.Close()
	if got, err := io.ReadAll(b); err != nil || string(got) != last {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	// Far more than the window: without the refusal this would block for ever.
	if n, err := io.Copy(b, io.LimitReader(zeros{}, 4*window)); err == nil {
		t.Errorf("wrote %d bytes to a stream that nobody reads", n)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A reader that stalls on one stream must not hold up another.
func TestStreamsDoNotBlockEachOther(t *testing.T) {
	host, guest := muxes(t)
	stalled, err := host.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	filled := make(chan struct{})
	go func() {
		defer close(filled)
		stalled.Write(make([]byte, 2*window)) // ends when the test closes it
	}()
	if _, err := guest.Accept(); err != nil {
		t.Fatal(err)
	}
	other, err := host.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(other, "hello")
	other.CloseWrite()
	accepted, err := guest.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(accepted); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	stalled.Close()
	<-filled
}

func BenchmarkStream(b *testing.B) {
	x, y := net.Pipe()
	go func() {
		c, err := Guest(y)
		if err != nil {
			return
		}
		s, err := NewGuestMux(c).Accept()
		if err == nil {
			io.Copy(io.Discard, s)
		}
	}()
	c, err := Host(b.Context(), x)
	if err != nil {
		b.Fatal(err)
	}
	m := NewHostMux(c)
	defer m.Close()
	s, err := m.Open(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := s.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}
