// Package guest is the host's end of the control channel: one Agent per running machine,
// made from a connection to its port. It knows the agent's protocol and nothing of what a
// VM is, how its machine runs, or who asks.
package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"banger/internal/errs"
	"banger/internal/guest/channel"
	"banger/internal/guest/proto"
)

// Agent is a session with the agent of one guest. It ends when either end goes away; its
// user then connects anew. All methods may be used from several goroutines.
type Agent struct{ mux *channel.Mux }

// Stream is one stream of a session. CloseWrite gives the agent EOF while replies are
// still read; Close ends both directions, and what the agent then writes fails there.
type Stream = channel.Stream

// Connect shakes hands with the agent over conn, waiting for it as long as ctx lives: the
// guest may not have booted yet. On success conn belongs to the Agent; on failure it is closed.
func Connect(ctx context.Context, conn net.Conn) (*Agent, error) {
	c, err := channel.Host(ctx, conn)
	if err != nil {
		conn.Close()
		if errors.Is(err, channel.ErrVersion) {
			return nil, errs.New(errs.Conflict, "the VM was started by another version of banger").
				Because(err).Try("restart the VM")
		}
		return nil, err
	}
	return &Agent{mux: channel.NewHostMux(c)}, nil
}

// redialAfter is how long Dial waits for an agent before it connects anew.
const redialAfter = 2 * time.Second

// Dial connects to the agent through dial, waiting for it as long as ctx lives. It is
// Connect for QEMU, which can leave a port stuck: when its last client went away in the
// middle of a write, the guest's output stands still from then on, and nothing tells, until
// another client has come and gone. So a connection on which no agent speaks is given up
// for a new one.
func Dial(ctx context.Context, dial func(context.Context) (net.Conn, error)) (*Agent, error) {
	for {
		conn, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		attempt, cancel := context.WithTimeout(ctx, redialAfter)
		a, err := Connect(attempt, conn)
		expired := attempt.Err() != nil && ctx.Err() == nil
		cancel()
		if err == nil || !expired {
			return a, err
		}
	}
}

// Open opens a stream and sends its header. It does not wait for the agent.
func (a *Agent) Open(ctx context.Context, header proto.Header) (*Stream, error) {
	s, err := a.mux.Open(ctx)
	if err != nil {
		return nil, a.lost(ctx, err)
	}
	if err := proto.WriteFrame(s, header); err != nil {
		s.Close()
		return nil, a.lost(ctx, err)
	}
	return s, nil
}

// Call runs a control method: params is marshalled unless nil, the reply's result is
// unmarshalled into result unless that is nil. An error of the agent's comes back as an
// errs.Error of its kind. A call whose ctx ends is abandoned; the agent finishes it.
func (a *Agent) Call(ctx context.Context, method string, params, result any) error {
	header := proto.Header{Service: proto.ServiceControl, Method: method}
	if params != nil {
		raw, err := json.Marshal(params)
		if err != nil {
			return fmt.Errorf("encode parameters of %s: %w", method, err)
		}
		header.Params = raw
	}
	s, err := a.Open(ctx, header)
	if err != nil {
		return err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Reset() })()

	var reply proto.Reply
	if err := proto.ReadFrame(s, &reply); err != nil {
		return a.lost(ctx, fmt.Errorf("%s: %w", method, err))
	}
	if reply.Error != nil {
		return FromProto(reply.Error)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Result, result); err != nil {
		return fmt.Errorf("decode result of %s: %w", method, err)
	}
	return nil
}

// lost explains an error of the transport.
func (a *Agent) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case <-a.mux.Done():
		return errs.New(errs.Unavailable, "the connection to the guest agent was lost").Because(err)
	default:
		return err
	}
}

// Done is closed when the session is over.
func (a *Agent) Done() <-chan struct{} { return a.mux.Done() }

// Close ends the session and its streams. The guest goes on.
func (a *Agent) Close() error { return a.mux.Close() }

// Streams is how many streams are open: of calls under way, commands, copies and connections.
func (a *Agent) Streams() int { return a.mux.Streams() }

// FromProto makes an errs.Error of an error that the agent sent. A kind that is not one of
// errs' becomes errs.Internal.
func FromProto(e *proto.Error) error {
	switch kind := errs.Kind(e.Code); kind {
	case errs.NotFound, errs.Conflict, errs.Invalid, errs.Busy, errs.Unavailable:
		return errs.New(kind, "%s", e.Message)
	default:
		return errs.New(errs.Internal, "%s", e.Message)
	}
}
