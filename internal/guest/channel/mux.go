package channel

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/libp2p/go-yamux/v5"
)

// never stands for "no time limit" where the mux wants a duration.
const never = 10 * 365 * 24 * time.Hour

// window is how many bytes a stream may hold unread at its receiver. The carrier's round
// trip is about a millisecond, so this never limits the speed; it bounds the memory that
// a reader who stalls can cost.
const window = 4 << 20

// muxHeader is the length of the mux's own header of a message.
const muxHeader = 12

// Chunk is how many bytes of a stream one record carries.
const Chunk = maxPayload - muxHeader

// Mux carries many streams on one Conn. Both ends may open them.
type Mux struct{ s *yamux.Session }

// NewHostMux starts the host's side. It has no keepalive: a paused machine answers
// nothing for hours, and its streams go on when it is resumed.
func NewHostMux(c *Conn) *Mux {
	cfg := config()
	cfg.EnableKeepAlive = false
	cfg.ConnectionWriteTimeout = never
	s, err := yamux.Client(c, cfg, nil)
	return mustMux(s, err)
}

// NewGuestMux starts the guest's side. Its keepalive ends a session whose host is gone
// without the port having told so.
func NewGuestMux(c *Conn) *Mux {
	cfg := config()
	cfg.EnableKeepAlive = true
	cfg.KeepAliveInterval = 30 * time.Second
	cfg.ConnectionWriteTimeout = time.Minute
	s, err := yamux.Server(c, cfg, nil)
	return mustMux(s, err)
}

// mustMux panics on the only error there is: a configuration that is wrong in this file.
func mustMux(s *yamux.Session, err error) *Mux {
	if err != nil {
		panic("channel: " + err.Error())
	}
	return &Mux{s}
}

func config() *yamux.Config {
	cfg := yamux.DefaultConfig()
	cfg.InitialStreamWindowSize = window
	cfg.MaxStreamWindowSize = window
	cfg.MaxMessageSize = maxPayload // one message, one record, one write
	cfg.MaxIncomingStreams = 4096
	cfg.MeasureRTTInterval = never // only the window's growth would use it
	cfg.ReadBufSize = 0            // Conn has a buffer
	cfg.LogOutput = io.Discard
	return cfg
}

// Open opens a stream. The other end learns of it with its first bytes.
func (m *Mux) Open(ctx context.Context) (*Stream, error) {
	s, err := m.s.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	return &Stream{s}, nil
}

// Accept waits for a stream from the other end. It fails once the session is over.
func (m *Mux) Accept() (*Stream, error) {
	s, err := m.s.AcceptStream()
	if err != nil {
		return nil, err
	}
	return &Stream{s}, nil
}

// Done is closed when the session is over.
func (m *Mux) Done() <-chan struct{} { return m.s.CloseChan() }

// Streams is how many streams are open.
func (m *Mux) Streams() int { return m.s.NumStreams() }

// Close ends the session, all its streams and the carrier.
func (m *Mux) Close() error { return m.s.Close() }

// Stream is a full-duplex stream whose directions end separately: CloseWrite gives the
// other end EOF after the last byte while this end reads on.
type Stream struct{ *yamux.Stream }

// Close ends both directions. What was written still arrives, followed by EOF; what the
// other end writes from now on fails there instead of blocking.
func (s *Stream) Close() error {
	err := s.Stream.CloseWrite()
	s.Stream.Reset()
	if errors.Is(err, yamux.ErrStreamReset) {
		return nil // gone already
	}
	return err
}
