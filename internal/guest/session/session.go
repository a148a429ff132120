// Package session is the client's side of what a guest does on its streams: running a
// command, copying files. It works on any streams, however they are opened, and depends on
// nothing but the protocol, so a small client can use it.
package session

import (
	"context"
	"errors"
	"fmt"
	"io"

	"banger/internal/guest/proto"
)

// Stream is one stream to the agent. CloseWrite gives the agent EOF while its replies are
// still read; Close ends both directions.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Open opens a stream and sends its header.
type Open func(ctx context.Context, header proto.Header) (Stream, error)

// readReply reads a reply frame and decodes its result into result, unless that is nil. An
// error of the agent's comes back as a *proto.Error.
func readReply(ctx context.Context, r io.Reader, result func(proto.Reply) error) error {
	var reply proto.Reply
	if err := proto.ReadFrame(r, &reply); err != nil {
		return lost(ctx, err)
	}
	if reply.Error != nil {
		return reply.Error
	}
	if result == nil {
		return nil
	}
	return result(reply)
}

// lost explains an error of the transport: the caller gave up, or the connection broke.
func lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the connection to the VM was lost: %w", err)
}
