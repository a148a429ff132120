package guestd

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"banger/internal/errs"
	"banger/internal/guest/channel"
	"banger/internal/guest/proto"
)

// control answers one call, made when the stream was opened. A call goes on to its end when the
// client does not wait.
func (a *Agent) control(s *channel.Stream, h proto.Header, opened time.Time) {
	result, err := a.call(h, opened)
	reply(s, result, err)
	if h.Method == proto.MethodShutdown && err == nil {
		a.shutdown(s, result)
	}
}

func (a *Agent) call(h proto.Header, opened time.Time) (any, error) {
	switch h.Method {
	case proto.MethodConfigure:
		var c proto.Configure
		if err := decode(h, &c); err != nil {
			return nil, err
		}
		err := a.configure(c)
		return proto.Configured{UnixNanos: a.System.Now().UnixNano(), TookNanos: int64(time.Since(opened))}, err
	case proto.MethodHealth:
		return a.health()
	case proto.MethodStats:
		return readStats(a.Root)
	case proto.MethodSetTime:
		var t proto.SetTime
		if err := decode(h, &t); err != nil {
			return nil, err
		}
		return nil, a.System.SetTime(time.Unix(0, t.UnixNanos))
	case proto.MethodClock:
		var c proto.Clock
		if err := decode(h, &c); err != nil {
			return nil, err
		}
		return a.adjustClock(c)
	case proto.MethodFreeze:
		return nil, a.System.Freeze(a.Root)
	case proto.MethodThaw:
		return nil, a.System.Thaw(a.Root)
	case proto.MethodShed:
		return nil, a.shed()
	case proto.MethodRehearse:
		return nil, a.rehearse()
	case proto.MethodShutdown:
		var sd proto.Shutdown
		if err := decode(h, &sd); err != nil {
			return nil, err
		}
		return sd, nil
	case proto.MethodWaitBoot:
		state, err := a.System.WaitBoot(context.Background(), a.Init)
		return proto.Boot{State: state}, err
	case proto.MethodGrowRoot:
		return a.System.GrowRoot(a.Root)
	case proto.MethodTrim:
		return a.System.Trim(a.Root)
	case proto.MethodFree:
		var from proto.FreeFrom
		if err := decode(h, &from); err != nil {
			return nil, err
		}
		return a.System.Free(a.Root, from.Offset)
	case proto.MethodReach:
		var r proto.Reach
		if err := decode(h, &r); err != nil {
			return nil, err
		}
		return nil, reach(r.Address)
	}
	return nil, errs.New(errs.Invalid, "the guest agent has no method %q", h.Method)
}

func decode(h proto.Header, params any) error {
	if len(h.Params) == 0 {
		return nil
	}
	if err := json.Unmarshal(h.Params, params); err != nil {
		return errs.New(errs.Invalid, "parameters of %s", h.Method).Because(err)
	}
	return nil
}

// replyTimeout is how long a shutdown waits for its reply to have been read.
const replyTimeout = 2 * time.Second

// shutdown begins the machine's end once the client has the reply, which it shows by
// closing the stream.
func (a *Agent) shutdown(s *channel.Stream, params any) {
	s.CloseWrite()
	s.SetReadDeadline(time.Now().Add(replyTimeout))
	io.Copy(io.Discard, s)
	sd := params.(proto.Shutdown)
	if err := a.System.Shutdown(a.Init, sd.Reboot); err != nil {
		a.Log.Printf("shut down: %v", err)
	}
}

func (a *Agent) health() (proto.Health, error) {
	a.mu.Lock()
	id := a.id
	a.mu.Unlock()
	h := proto.Health{VMID: id.vmID, Configured: id.configured, Init: a.Init}
	if h.Init == "" {
		h.Init = "banger-guest"
	}
	var err error
	h.Kernel, h.UptimeMS, err = kernelAndUptime()
	return h, err
}
