package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"banger/internal/errs"
	"banger/internal/guest/channel"
	"banger/internal/guest/proto"
)

// serve is an agent that gives each stream to handle.
func serve(conn net.Conn, handle func(h proto.Header, s *channel.Stream)) {
	c, err := channel.Guest(conn)
	if err != nil {
		return
	}
	mux := channel.NewGuestMux(c)
	defer mux.Close()
	for {
		s, err := mux.Accept()
		if err != nil {
			return
		}
		go func() {
			var h proto.Header
			if proto.ReadFrame(s, &h) == nil {
				handle(h, s)
			}
			s.Close()
		}()
	}
}

func connect(t *testing.T, handle func(h proto.Header, s *channel.Stream)) *Agent {
	t.Helper()
	host, guest := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve(guest, handle)
	}()
	a, err := Connect(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.Close()
		<-done
	})
	return a
}

func TestCallMapsErrors(t *testing.T) {
	a := connect(t, func(h proto.Header, s *channel.Stream) {
		proto.WriteFrame(s, proto.Reply{Error: &proto.Error{Code: h.Method, Message: "it's so"}})
	})
	for code, want := range map[string]errs.Kind{"not_found": errs.NotFound, "busy": errs.Busy, "invalid": errs.Invalid, "nonsense": errs.Internal} {
		err := a.Call(t.Context(), code, nil, nil)
		if errs.KindOf(err) != want || err.Error() != "it's so" {
			t.Errorf("%s: got %v", code, err)
		}
	}
}

func TestCallEndsWithItsContextAndTheSession(t *testing.T) {
	called := make(chan struct{})
	a := connect(t, func(_ proto.Header, s *channel.Stream) {
		called <- struct{}{}
		io.Copy(io.Discard, s) // never replies
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-called
		cancel()
	}()
	if err := a.Call(ctx, "x", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	go func() {
		<-called
		a.Close()
	}()
	if err := a.Call(t.Context(), "x", nil, nil); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("got %v", err)
	}
	<-a.Done()
}

// A connection on which no agent speaks is given up for a new one.
func TestDialTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		a, err := Dial(t.Context(), func(context.Context) (net.Conn, error) {
			host, guest := net.Pipe()
			if dials++; dials == 1 {
				go io.Copy(io.Discard, guest) // stuck: it takes everything and says nothing
			} else {
				go serve(guest, func(proto.Header, *channel.Stream) {})
			}
			return host, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		if dials != 2 {
			t.Errorf("dialled %d times", dials)
		}
	})
}

// splice puts a Unix connection before a stream, as the daemon does, and returns the
// client's end of it.
func splice(t *testing.T, a *Agent) *net.UnixConn {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Open(t.Context(), proto.Header{Service: proto.ServiceSSH})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Splice(server, s)
	}()
	t.Cleanup(func() {
		client.Close()
		<-done
	})
	return client
}

func TestSpliceKeepsDirectionsApart(t *testing.T) {
	a := connect(t, func(_ proto.Header, s *channel.Stream) {
		question, _ := io.ReadAll(s)
		io.WriteString(s, "you said "+string(question))
	})
	client := splice(t, a)
	io.WriteString(client, "hello")
	client.CloseWrite()
	if got, err := io.ReadAll(client); err != nil || string(got) != "you said hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

// An agent that refuses what it is sent is still heard.
func TestSpliceDeliversLastWords(t *testing.T) {
	a := connect(t, func(_ proto.Header, s *channel.Stream) { io.WriteString(s, "no room") })
	client := splice(t, a)
	refused := make(chan error, 1)
	go func() {
		_, err := io.Copy(client, io.LimitReader(zeros{}, 1<<30))
		refused <- err
	}()
	if got, err := io.ReadAll(client); err != nil || string(got) != "no room" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := <-refused; err == nil {
		t.Error("a gigabyte was taken by nobody")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// The agent learns that its client has gone.
func TestSpliceTellsOfAClientThatLeft(t *testing.T) {
	told := make(chan error, 1)
	a := connect(t, func(_ proto.Header, s *channel.Stream) {
		_, err := io.Copy(s, zeros{})
		told <- err
	})
	client := splice(t, a)
	io.ReadFull(client, make([]byte, 1000))
	client.Close()
	if err := <-told; err == nil || strings.Contains(err.Error(), "short") {
		t.Errorf("got %v", err)
	}
}
