package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"banger/api"
	"banger/internal/errs"
	"banger/internal/guest/proto"
	"banger/internal/hypervisor"
	"banger/internal/vm"
)

func (s *Server) streamRoutes(a huma.API) {
	stream := route("GET", "/v1/vms/{ref}/stream", "open-stream",
		"Turn the connection into a stream to the guest agent (Upgrade: "+api.Protocol+"); its first frame is the stream's header")
	huma.Register(a, stream, func(ctx context.Context, in *ByRef) (*huma.StreamResponse, error) {
		g, err := s.VMs.Guest(ctx, in.Ref)
		if err != nil {
			return nil, toAPI(err)
		}
		return upgrade(func(conn *net.UnixConn) { s.joinGuest(g, conn) }), nil
	})
	console := route("GET", "/v1/vms/{ref}/console", "attach-console", "Turn the connection into the VM's serial console (Upgrade: "+api.Protocol+")")
	huma.Register(a, console, func(ctx context.Context, in *ByRef) (*huma.StreamResponse, error) {
		c, err := s.VMs.Console(ctx, in.Ref)
		if err != nil {
			return nil, toAPI(err)
		}
		return upgrade(func(conn *net.UnixConn) { s.joinConsole(c, conn) }), nil
	})
	logs := route("GET", "/v1/vms/{ref}/logs", "get-logs", "Read a VM's console log")
	huma.Register(a, logs, func(ctx context.Context, in *struct {
		ByRef
		Follow bool `query:"follow" doc:"Go on as more comes, until the machine ends"`
	}) (*huma.StreamResponse, error) {
		log, err := s.VMs.ReadLog(ctx, in.Ref, in.Follow)
		if err != nil {
			return nil, toAPI(err)
		}
		return &huma.StreamResponse{Body: func(c huma.Context) {
			defer log.Close()
			_, w := humago.Unwrap(c)
			w.Header().Set("Content-Type", "application/octet-stream")
			io.Copy(flushed{w, http.NewResponseController(w)}, log) // ends with either side
		}}, nil
	})
}

// flushed writes so that the client gets it at once.
type flushed struct {
	io.Writer
	flush *http.ResponseController
}

func (f flushed) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	if err != nil {
		return n, err
	}
	return n, f.flush.Flush()
}

// upgrade answers 101 and hands the bare connection to serve, which closes it.
func upgrade(serve func(*net.UnixConn)) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(c huma.Context) {
		r, w := humago.Unwrap(c)
		if r.Header.Get("Upgrade") != api.Protocol {
			w.Header().Set("Upgrade", api.Protocol)
			http.Error(w, `{"code":"invalid","message":"this call needs the header Upgrade: `+api.Protocol+`"}`, http.StatusUpgradeRequired)
			return
		}
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return // the client has gone
		}
		unix, err := bare(conn, buf)
		if err != nil {
			conn.Close()
			return
		}
		serve(unix)
	}}
}

// bare answers 101. A client sends nothing before that answer, so no byte of the stream can
// lie in the server's buffer.
func bare(conn net.Conn, buf *bufio.ReadWriter) (*net.UnixConn, error) {
	unix, ok := conn.(*net.UnixConn)
	if !ok || buf.Reader.Buffered() > 0 {
		return nil, errors.New("the client spoke too soon")
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	_, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+api.Protocol+"\r\n\r\n")
	return unix, err
}

// headerLimit bounds how long a client may take to say what its stream is for.
const headerLimit = 10 * time.Second

func (s *Server) joinGuest(g vm.Guest, conn *net.UnixConn) {
	s.streams.Add(1)
	defer func() {
		conn.Close()
		if s.streams.Add(-1) == 0 {
			giveBack()
		}
	}()
	var h proto.Header
	conn.SetReadDeadline(time.Now().Add(headerLimit))
	if err := proto.ReadFrame(conn, &h); err != nil {
		return
	}
	conn.SetReadDeadline(time.Time{})
	if h.Service == proto.ServiceControl { // the daemon's own
		refuse(conn, errs.New(errs.Invalid, "the control service is not for clients"))
		return
	}
	if err := g.Join(context.Background(), h, conn); err != nil {
		s.Log.Warn("open a stream to a guest", "service", h.Service, "err", err)
		refuse(conn, err)
	}
}

// refuse answers a stream that can't be opened in the form that every service's answers
// have in common.
func refuse(conn net.Conn, err error) {
	proto.WriteFrame(conn, proto.Reply{Error: &proto.Error{Code: string(errs.KindOf(err)), Message: err.Error()}}) // the client may have gone
}

func (s *Server) joinConsole(c hypervisor.Console, conn *net.UnixConn) {
	defer conn.Close()
	live, err := c.Attach()
	if err != nil {
		s.Log.Warn("attach to a console", "err", err)
		return
	}
	go func() {
		io.Copy(live, conn)
		live.Close() // the client has gone: ends the copy below
	}()
	io.Copy(conn, live)
	live.Close()
}
