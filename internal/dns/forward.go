package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// askLimit bounds one question to all upstreams together: the C library's resolver gives
	// up after 5 s.
	askLimit = 4500 * time.Millisecond

	// tryLimit bounds the wait for one upstream before the next is asked.
	tryLimit = 1500 * time.Millisecond

	// maxFlights is how many questions are on their way at a time, each with a socket.
	maxFlights = 256

	// maxWaiting is how many askers wait for them.
	maxWaiting = 2048
)

var (
	errNoUpstream = errors.New("the host has no resolver to ask")
	errOverloaded = errors.New("too many questions are on their way")
)

// forwarder asks upstreams. Whoever asks what is being asked already waits for that answer,
// so a question that comes back to us by a loop goes no further.
type forwarder struct {
	servers func() []netip.AddrPort
	last    atomic.Pointer[netip.AddrPort] // that gave a good answer
	waiting atomic.Int64

	mu      sync.Mutex
	flights map[flightKey]*flight
}

type flightKey struct {
	name          string // in lower case
	qtype, qclass uint16
	do, cd        bool
}

type flight struct {
	done  chan struct{}
	reply *dns.Msg // not to be changed
	err   error
}

func newForwarder(servers func() []netip.AddrPort) *forwarder {
	return &forwarder{servers: servers, flights: map[flightKey]*flight{}}
}

// answer makes the answer to req of what the upstreams say.
func (f *forwarder) answer(req *dns.Msg) *dns.Msg {
	reply, err := f.ask(req)
	if err != nil {
		resp := new(dns.Msg).SetRcode(req, dns.RcodeServerFailure)
		resp.RecursionAvailable = true
		return resp
	}
	return relay(req, reply)
}

// relay makes reply, which may be shared, an answer to req.
func relay(req, reply *dns.Msg) *dns.Msg {
	resp := reply.Copy()
	resp.Id, resp.Question, resp.RecursionDesired, resp.Compress = req.Id, req.Question, req.RecursionDesired, true
	resp.Extra = withoutOPT(resp.Extra) // what it says holds between us and the upstream only
	asked := req.Question[0].Name
	for _, section := range [][]dns.RR{resp.Answer, resp.Ns} {
		for _, rr := range section {
			if h := rr.Header(); strings.EqualFold(h.Name, asked) {
				h.Name = asked // another may have asked in another case
			}
		}
	}
	return resp
}

func withoutOPT(extra []dns.RR) (rest []dns.RR) {
	for _, rr := range extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			rest = append(rest, rr)
		}
	}
	return rest
}

// ask returns what an upstream says to the question of req.
func (f *forwarder) ask(req *dns.Msg) (*dns.Msg, error) {
	if f.waiting.Add(1) > maxWaiting {
		f.waiting.Add(-1)
		return nil, errOverloaded
	}
	defer f.waiting.Add(-1)
	q := req.Question[0]
	key := flightKey{name: strings.ToLower(q.Name), qtype: q.Qtype, qclass: q.Qclass, cd: req.CheckingDisabled}
	if opt := req.IsEdns0(); opt != nil {
		key.do = opt.Do()
	}
	f.mu.Lock()
	if fl, flying := f.flights[key]; flying {
		f.mu.Unlock()
		<-fl.done
		return fl.reply, fl.err
	}
	if len(f.flights) >= maxFlights {
		f.mu.Unlock()
		return nil, errOverloaded
	}
	fl := &flight{done: make(chan struct{})}
	f.flights[key] = fl
	f.mu.Unlock()
	fl.reply, fl.err = f.fly(q, key)
	f.mu.Lock()
	delete(f.flights, key)
	f.mu.Unlock()
	close(fl.done)
	return fl.reply, fl.err
}

// fly asks one upstream after the other, those that stay silent again, until one has a good
// answer or time is up. If none has, the last answer that there was is returned.
func (f *forwarder) fly(q dns.Question, key flightKey) (reply *dns.Msg, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	servers := f.inOrder()
	if len(servers) == 0 {
		return nil, errNoUpstream
	}
	err = errNoUpstream
	for reply == nil && ctx.Err() == nil {
		for _, server := range servers {
			r, askErr := exchange(ctx, server, question(q, key))
			if askErr != nil {
				err = askErr
				continue
			}
			if reply = r; decided(r) {
				f.last.Store(&server)
				return reply, nil
			}
		}
		if reply == nil && !pause(ctx) {
			break
		}
	}
	if reply != nil {
		return reply, nil
	}
	return nil, err
}

// pause waits a little between two rounds, for servers that refuse at once would be asked
// again and again.
func pause(ctx context.Context) bool {
	t := time.NewTimer(100 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// inOrder is the upstreams as configured, except that the one which answered last comes first.
func (f *forwarder) inOrder() []netip.AddrPort {
	servers := f.servers()
	if last := f.last.Load(); last != nil {
		for i, s := range servers {
			if s == *last {
				copy(servers[1:i+1], servers[:i])
				servers[0] = s
				break
			}
		}
	}
	return servers
}

// decided tells whether an answer is one that another upstream need not be asked after.
func decided(r *dns.Msg) bool {
	return r.Rcode == dns.RcodeSuccess || r.Rcode == dns.RcodeNameError
}

// question is what an upstream is asked: nothing of the asker's goes along but its question.
func question(q dns.Question, key flightKey) *dns.Msg {
	m := new(dns.Msg)
	m.Id = dns.Id()
	m.RecursionDesired = true
	m.CheckingDisabled = key.cd
	m.Question = []dns.Question{q}
	return m.SetEdns0(udpSize, key.do)
}

// exchange asks one upstream by UDP, and by TCP if its answer is too long for that.
func exchange(ctx context.Context, server netip.AddrPort, m *dns.Msg) (*dns.Msg, error) {
	short, err := try(ctx, "udp", server, m)
	if err != nil || !short.Truncated {
		return short, err
	}
	return try(ctx, "tcp", server, m)
}

// try asks one upstream in one way, from a port that nobody can guess. What is no answer to
// this question is passed over: it may be forged.
func try(ctx context.Context, network string, server netip.AddrPort, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	conn := &dns.Conn{Conn: c, UDPSize: 4 * udpSize} // some send more than they were asked to
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	for {
		raw, err := conn.ReadMsgHeader(nil)
		if err != nil && len(raw) == 0 && !errors.Is(err, dns.ErrShortRead) {
			return nil, err
		}
		reply := new(dns.Msg)
		if reply.Unpack(raw) == nil && answers(reply, m) {
			return reply, nil
		}
		if network == "tcp" {
			return nil, errors.New("its answer is none to the question")
		}
	}
}

// answers tells whether reply is an answer to m, and claims nothing about our own zone.
func answers(reply, m *dns.Msg) bool {
	if !reply.Response || reply.Id != m.Id || len(reply.Question) != 1 {
		return false
	}
	q, asked := reply.Question[0], m.Question[0]
	if !strings.EqualFold(q.Name, asked.Name) || q.Qtype != asked.Qtype || q.Qclass != asked.Qclass {
		return false
	}
	for _, section := range [][]dns.RR{reply.Answer, reply.Ns, reply.Extra} {
		for _, rr := range section {
			if dns.IsSubDomain(Domain, strings.ToLower(rr.Header().Name)) {
				return false
			}
		}
	}
	return true
}
