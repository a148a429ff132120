package api

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"banger/internal/guest/proto"
	"banger/internal/guest/session"
)

// The types of a command run in a VM.
type (
	Exec   = proto.Exec // the command; Session and FDs are filled in by Client.Exec
	ExecIO = session.IO // where its input comes from and its output goes
	Exit   = proto.Exit // how it ended
	Size   = proto.Size // of a terminal
	Stream = session.Stream
)

// Protocol is the name of the upgrade that turns a connection to the daemon into a stream
// to the guest.
const Protocol = "banger-stream"

// Exec runs a command in the VM and returns when it has ended and all its output has
// been written.
func (c *Client) Exec(ctx context.Context, ref string, e Exec, streams ExecIO) (Exit, error) {
	return session.Exec(ctx, c.opener(ref), e, streams)
}

// Put copies a file or tree of this host's into the VM, as cp would: into dst if that is
// a directory, else to that name.
func (c *Client) Put(ctx context.Context, ref, src, dst string, progress func(done, total int64)) error {
	return session.Put(ctx, c.opener(ref), src, proto.Put{Path: dst}, progress)
}

// Get copies a file or tree of the VM's to this host, as cp would.
func (c *Client) Get(ctx context.Context, ref, src, dst string, progress func(done, total int64)) error {
	return session.Get(ctx, c.opener(ref), src, dst, progress)
}

// Dial connects to an address as seen from the VM. Network is tcp or unix.
func (c *Client) Dial(ctx context.Context, ref, network, address string) (Stream, error) {
	s, err := c.opener(ref)(ctx, proto.Header{Service: proto.ServiceDial, Dial: &proto.Dial{Network: network, Address: address}})
	if err != nil {
		return nil, err
	}
	var reply proto.Reply
	if err := proto.ReadFrame(s, &reply); err != nil {
		s.Close()
		return nil, err
	}
	if reply.Error != nil {
		s.Close()
		return nil, reply.Error
	}
	return s, nil
}

// DialSSH connects to the SSH server of the VM's guest agent.
func (c *Client) DialSSH(ctx context.Context, ref string) (Stream, error) {
	return c.opener(ref)(ctx, proto.Header{Service: proto.ServiceSSH})
}

// Measure tells how long size bytes take through one bare stream, into the VM and out of it.
func (c *Client) Measure(ctx context.Context, ref string, size int64) (in, out time.Duration, err error) {
	begin := time.Now()
	s, err := c.opener(ref)(ctx, proto.Header{Service: proto.ServiceMeasure, Measure: &proto.Measure{}})
	if err != nil {
		return 0, 0, err
	}
	defer s.Close()
	zeros := make([]byte, 1<<20)
	for left := size; left > 0; left -= int64(len(zeros)) {
		if _, err := s.Write(zeros[:min(left, int64(len(zeros)))]); err != nil {
			return 0, 0, err
		}
	}
	if err := s.CloseWrite(); err != nil {
		return 0, 0, err
	}
	var reply proto.Reply
	if err := proto.ReadFrame(s, &reply); err != nil {
		return 0, 0, err
	}
	in, begin = time.Since(begin), time.Now()
	back, err := c.opener(ref)(ctx, proto.Header{Service: proto.ServiceMeasure, Measure: &proto.Measure{Bytes: size}})
	if err != nil {
		return 0, 0, err
	}
	defer back.Close()
	if n, err := io.Copy(io.Discard, back); err != nil || n != size {
		return 0, 0, fmt.Errorf("%d of %d bytes came back: %w", n, size, cmp.Or(err, io.ErrUnexpectedEOF))
	}
	return in, time.Since(begin), nil
}

// Console attaches to the VM's serial console.
func (c *Client) Console(ctx context.Context, ref string) (Stream, error) {
	return c.upgrade(ctx, vmPath(ref, "/console"))
}

func (c *Client) opener(ref string) session.Open {
	return func(ctx context.Context, h proto.Header) (Stream, error) {
		s, err := c.upgrade(ctx, vmPath(ref, "/stream"))
		if err != nil {
			return nil, err
		}
		if err := proto.WriteFrame(s, h); err != nil {
			s.Close()
			return nil, err
		}
		return s, nil
	}
}

// upgrade makes a connection of its own and turns it into a stream of bytes.
func (c *Client) upgrade(ctx context.Context, path string) (Stream, error) {
	if err := unnamed(path); err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://banger"+path, nil)
	if err != nil {
		conn.Close()
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", Protocol)
	if err := req.Write(conn); err != nil {
		conn.Close()
		return nil, gone(err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		conn.Close()
		return nil, gone(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer conn.Close()
		return nil, readError(resp)
	}
	return &upgraded{UnixConn: conn.(*net.UnixConn), early: r}, nil
}

// upgraded is a connection whose first bytes may lie in the reader that read the answer.
type upgraded struct {
	*net.UnixConn
	early *bufio.Reader
}

func (u *upgraded) Read(p []byte) (int, error) {
	if u.early.Buffered() > 0 {
		return u.early.Read(p)
	}
	return u.UnixConn.Read(p)
}

// WriteTo lets io.Copy move bytes between descriptors in the kernel once the early ones
// are out.
func (u *upgraded) WriteTo(w io.Writer) (int64, error) {
	n, err := io.CopyN(w, u.early, int64(u.early.Buffered()))
	if err != nil {
		return n, err
	}
	m, err := io.Copy(w, u.UnixConn)
	return n + m, err
}
