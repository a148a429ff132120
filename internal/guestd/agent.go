// Package guestd is the guest's end of the control channel, and the first process of the
// machine. It owns what happens inside the guest: starting the image, configuring it,
// running commands and copying files for the host. It knows nothing of the host but what
// the protocol says.
package guestd

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log"
	"net"
	"sync"
	"time"

	"banger/internal/errs"
	"banger/internal/guest/channel"
	"banger/internal/guest/proto"
)

// Config says what an Agent works on.
type Config struct {
	Root       string      // directory of the guest's root filesystem: "/" but in tests
	Init       string      // path of the image's init; empty where banger-guest is init itself
	System     System      // the kernel's side of configure, shutdown and the like
	Configured func()      // called once, after the first configure; may be nil
	Log        *log.Logger // for what no reply can tell
}

// Agent serves the control channel. One Agent serves one session after another.
type Agent struct {
	Config
	stdio rendezvous

	mu   sync.Mutex // guards identity
	id   identity
	conf sync.Mutex // one configure at a time
}

// identity is what the first configure gave, kept in memory only.
type identity struct {
	vmID       string
	configured bool
	ssh        func() (*sshIdentity, error)
	env        []string        // of every command
	net        proto.Configure // what it said of the network, and nothing else
}

// configuredEnv is what every command finds in its environment.
func (a *Agent) configuredEnv() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.id.env
}

// New makes an Agent.
func New(c Config) *Agent {
	return &Agent{Config: c}
}

// ServeConn shakes hands on a carrier and serves the session until it ends. The carrier
// is closed then.
func (a *Agent) ServeConn(carrier net.Conn) error {
	conn, err := channel.Guest(carrier)
	if err != nil {
		carrier.Close()
		return err
	}
	mux := channel.NewGuestMux(conn)
	defer mux.Close()
	for {
		s, err := mux.Accept()
		if err != nil {
			return err
		}
		go a.serve(s)
	}
}

// headerTimeout is how long a stream may stay silent after it was opened.
const headerTimeout = 30 * time.Second

func (a *Agent) serve(s *channel.Stream) {
	opened := time.Now()
	var h proto.Header
	s.SetReadDeadline(time.Now().Add(headerTimeout))
	if err := proto.ReadFrame(s, &h); err != nil {
		s.Reset()
		return
	}
	s.SetReadDeadline(time.Time{})
	if h.Service == proto.ServiceStdio && h.Stdio != nil {
		a.stdio.offer(*h.Stdio, s) // the exec that takes it closes it
		return
	}
	defer s.Close()
	switch {
	case h.Service == proto.ServiceControl:
		a.control(s, h, opened)
	case h.Service == proto.ServiceExec && h.Exec != nil:
		a.exec(s, *h.Exec)
	case h.Service == proto.ServicePut && h.Put != nil:
		reply(s, nil, a.put(s, *h.Put))
	case h.Service == proto.ServiceGet && h.Get != nil:
		a.get(s, *h.Get)
	case h.Service == proto.ServiceMeasure && h.Measure != nil:
		a.measure(s, *h.Measure)
	case h.Service == proto.ServiceDial && h.Dial != nil:
		a.dial(s, *h.Dial)
	case h.Service == proto.ServiceSSH:
		a.serveSSH(s)
	default:
		reply(s, nil, errs.New(errs.Invalid, "the guest agent has no service %q", h.Service))
	}
}

// reply writes a reply frame. Nobody is told if that fails: the stream is gone.
func reply(s *channel.Stream, result any, err error) {
	var r proto.Reply
	if err == nil && result != nil {
		r.Result, err = json.Marshal(result)
	}
	if err != nil {
		r.Error = protoError(err)
	}
	proto.WriteFrame(s, r)
}

// protoError gives an error the kind that the host will show.
func protoError(err error) *proto.Error {
	kind := errs.KindOf(err)
	if _, ok := errors.AsType[*errs.Error](err); !ok {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			kind = errs.NotFound
		case errors.Is(err, fs.ErrExist):
			kind = errs.Conflict
		case errors.Is(err, fs.ErrPermission):
			kind = errs.Invalid
		case errors.Is(err, context.DeadlineExceeded):
			kind = errs.Unavailable
		}
	}
	return &proto.Error{Code: string(kind), Message: err.Error()}
}
