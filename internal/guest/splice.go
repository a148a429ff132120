package guest

import (
	"context"
	"io"
	"net"

	"banger/internal/guest/channel"
	"banger/internal/guest/proto"
)

// Join opens a stream with this header for a client and moves its bytes until both
// directions have ended. It returns an error, and leaves the client's connection open, only
// if the stream could not be opened.
func (a *Agent) Join(ctx context.Context, header proto.Header, client *net.UnixConn) error {
	stream, err := a.Open(ctx, header)
	if err != nil {
		return err
	}
	Splice(client, stream)
	return nil
}

// Splice copies bytes between a client's connection and a stream until both directions
// have ended, then closes both. Each direction ends by itself: an end of file is passed
// on, and an agent that stops reading does not keep its last words from the client. A
// client that no longer reads ends everything.
func Splice(client *net.UnixConn, stream *Stream) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		toAgent(stream, client)
	}()
	toClient(client, stream)
	<-done
	client.Close()
	stream.Close()
}

// spliceBuffer is the size of one read from either side, in bytes: whole records, for a
// small rest would cost the guest nearly as much as a full one.
const spliceBuffer = 4 * channel.Chunk

func toAgent(stream *Stream, client *net.UnixConn) {
	buf := make([]byte, spliceBuffer)
	for {
		n, err := client.Read(buf)
		if n > 0 {
			if _, werr := stream.Write(buf[:n]); werr != nil {
				client.CloseRead() // the client's writes fail from now on
				// A socket closed with bytes unread in it would give the client
				// "connection reset" in place of its end of file.
				io.Copy(io.Discard, client)
				return
			}
		}
		if err != nil {
			stream.CloseWrite()
			return
		}
	}
}

func toClient(client *net.UnixConn, stream *Stream) {
	buf := make([]byte, spliceBuffer)
	for {
		n, err := stream.Read(buf)
		if n > 0 {
			if _, werr := client.Write(buf[:n]); werr != nil {
				stream.Close()
				client.Close()
				return
			}
		}
		if err != nil {
			client.CloseWrite()
			return
		}
	}
}
