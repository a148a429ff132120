package guestd

import (
	"errors"
	"sync"
	"time"

	"banger/internal/guest/channel"
	"banger/internal/guest/proto"
)

// meetTimeout is how long one half of an exec session waits for the other.
const meetTimeout = 30 * time.Second

// rendezvous brings an exec and its stdio streams together, whichever comes first.
type rendezvous struct {
	mu     sync.Mutex
	places map[proto.Stdio]*place
}

// place is where one stream is handed over. It exists while somebody is there.
type place struct {
	handover chan *channel.Stream
	present  int
}

func (r *rendezvous) enter(key proto.Stdio) *place {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.places == nil {
		r.places = map[proto.Stdio]*place{}
	}
	p := r.places[key]
	if p == nil {
		p = &place{handover: make(chan *channel.Stream)}
		r.places[key] = p
	}
	p.present++
	return p
}

func (r *rendezvous) leave(key proto.Stdio, p *place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.present--; p.present == 0 {
		delete(r.places, key)
	}
}

// offer hands s to the exec session that it names, or closes it when none comes.
func (r *rendezvous) offer(key proto.Stdio, s *channel.Stream) {
	p := r.enter(key)
	defer r.leave(key, p)
	timer := time.NewTimer(meetTimeout)
	defer timer.Stop()
	select {
	case p.handover <- s:
	case <-timer.C:
		s.Reset()
	}
}

var errNoStdio = errors.New("the command's input and output streams did not arrive")

// take waits for the streams of a session's descriptors, and gives them all or none.
func (r *rendezvous) take(session string, fds []int) (map[int]*channel.Stream, error) {
	streams := map[int]*channel.Stream{}
	timer := time.NewTimer(meetTimeout)
	defer timer.Stop()
	for _, fd := range fds {
		key := proto.Stdio{Session: session, FD: fd}
		p := r.enter(key)
		select {
		case streams[fd] = <-p.handover:
			r.leave(key, p)
		case <-timer.C:
			r.leave(key, p)
			for _, s := range streams {
				s.Reset()
			}
			return nil, errNoStdio
		}
	}
	return streams, nil
}
