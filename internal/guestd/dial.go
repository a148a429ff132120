package guestd

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"banger/internal/errs"
	"banger/internal/guest/channel"
	"banger/internal/guest/proto"
)

// dialTimeout bounds a connection attempt inside the guest.
const dialTimeout = 30 * time.Second

// duplex is a connection whose directions end separately.
type duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

func dialGuest(d proto.Dial) (duplex, error) {
	if d.Network != "tcp" && d.Network != "unix" {
		return nil, errs.New(errs.Invalid, "can't dial network %q", d.Network)
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, d.Network, d.Address)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "connect to %s in the guest", d.Address).Because(err)
	}
	return conn.(duplex), nil // TCP and Unix connections both are
}

// reachTimeout bounds how long an address may take to answer.
const reachTimeout = 3 * time.Second

// reach tells whether an address answers, be it with a refusal.
func reach(address string) error {
	conn, err := net.DialTimeout("tcp", address, reachTimeout)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return errs.New(errs.Unavailable, "reach %s", address).Because(err)
	}
	return conn.Close()
}

func (a *Agent) dial(s *channel.Stream, d proto.Dial) {
	conn, err := dialGuest(d)
	reply(s, nil, err)
	if err == nil {
		relay(s, conn)
	}
}

// relay copies both ways, each direction to its own end, then closes both. Where one
// breaks, so does the other.
func relay(a, b duplex) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		oneWay(a, b)
	}()
	oneWay(b, a)
	<-done
	a.Close()
	b.Close()
}

func oneWay(dst, src duplex) {
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 64<<10))
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		dst.Close()
		src.Close()
	}
}

// measure moves bytes that mean nothing, so that a client can see how fast they go.
func (a *Agent) measure(s *channel.Stream, m proto.Measure) {
	defer s.Close()
	if m.Bytes == 0 {
		_, err := io.Copy(io.Discard, s)
		reply(s, nil, err)
		return
	}
	zeros := make([]byte, 1<<20)
	for left := m.Bytes; left > 0; {
		n, err := s.Write(zeros[:min(left, int64(len(zeros)))])
		if err != nil {
			return
		}
		left -= int64(n)
	}
}
