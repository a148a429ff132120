package dns

import (
	"errors"
	"net"
	"slices"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
)

// batch is how many messages are taken from the kernel, and given to it, at once. Under load
// the calls of the kernel are what costs most.
const batch = 64

// errorPause is how long a socket that can't be read is left alone.
const errorPause = 10 * time.Millisecond

// The answers that are kept to be given again are at most keepAnswers, to questions of at most
// keepLength bytes.
const (
	keepAnswers = 2048
	keepLength  = 128
)

// udpServer answers the messages that come on a socket: those about our zones at once, in
// turn, which takes microseconds; those that are forwarded each in its own time.
type udpServer struct {
	listener *Listener
	conn     *net.UDPConn
	packets  *ipv4.PacketConn
	out      []ipv4.Message
	bufs     [batch][]byte // for the answers in out

	// What a zone answers to a message depends on that alone, its id apart: answers from
	// kept, by the rest of the message, are good as long as the zone is the same.
	zone *zone
	kept map[string][]byte
}

func newUDPServer(l *Listener, conn *net.UDPConn) *udpServer {
	s := &udpServer{listener: l, conn: conn, packets: ipv4.NewPacketConn(conn), out: make([]ipv4.Message, 0, batch)}
	for i := range s.bufs {
		s.bufs[i] = make([]byte, udpSize)
	}
	return s
}

// serve answers until the socket is closed.
func (s *udpServer) serve() {
	in := make([]ipv4.Message, batch)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, udpSize)}
	}
	for {
		n, err := s.packets.ReadBatch(in, 0)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(errorPause) // one that stays may not take a core
			continue
		}
		for _, m := range in[:n] {
			s.take(m.Buffers[0][:m.N], m.Addr)
		}
		s.flush()
	}
}

// take deals with one message.
func (s *udpServer) take(wire []byte, from net.Addr) {
	if z := s.listener.server.zone.Load(); z != s.zone || len(s.kept) == keepAnswers {
		s.zone, s.kept = z, map[string][]byte{}
	}
	if len(wire) < 12 {
		return // shorter than a header
	}
	if known, ok := s.kept[string(wire[2:])]; ok {
		s.send(append(append(s.buffer(), wire[:2]...), known...), from)
		return
	}
	req, resp := receive(wire)
	if req == nil && resp == nil {
		return
	}
	if req != nil {
		if resp = s.listener.local(s.zone, req, from); resp == nil {
			go s.forward(req, from)
			return
		}
		fit(resp, udpLimit(req))
	}
	answer, err := resp.PackBuffer(s.buffer()[:udpSize])
	if err != nil {
		return // of nothing that a message can ask for
	}
	if resp.Authoritative && len(wire) <= keepLength {
		s.kept[string(wire[2:])] = slices.Clone(answer[2:])
	}
	s.send(answer, from)
}

// buffer returns where the next answer is to be written.
func (s *udpServer) buffer() []byte { return s.bufs[len(s.out)][:0] }

// send puts an answer to those that the next flush sends.
func (s *udpServer) send(answer []byte, to net.Addr) {
	s.out = append(s.out, ipv4.Message{Buffers: [][]byte{answer}, Addr: to})
}

// flush sends what is to be sent. What the kernel refuses, to one who can't be reached say, is
// passed over.
func (s *udpServer) flush() {
	for rest := s.out; len(rest) > 0; {
		n, err := s.packets.WriteBatch(rest, 0)
		if err != nil || n == 0 {
			n = max(n, 0) + 1
		}
		rest = rest[min(n, len(rest)):]
	}
	s.out = s.out[:0]
}

func (s *udpServer) forward(req *dns.Msg, from net.Addr) {
	resp := s.listener.server.forward.answer(req)
	finish(req, resp)
	fit(resp, udpLimit(req))
	if wire, err := resp.Pack(); err == nil {
		_, _ = s.conn.WriteTo(wire, from) // who asked may be gone
	}
}

// receive reads a message. One that is no question is answered as that, if at all.
func receive(wire []byte) (req, resp *dns.Msg) {
	req = new(dns.Msg)
	err := req.Unpack(wire)
	switch {
	case req.Response: // an answer is never answered
		return nil, nil
	case req.Opcode != dns.OpcodeQuery:
		return nil, new(dns.Msg).SetRcode(req, dns.RcodeNotImplemented)
	case err != nil || len(req.Question) != 1:
		resp = new(dns.Msg).SetRcode(req, dns.RcodeFormatError)
		resp.Question = nil
		return nil, resp
	}
	return req, nil
}

// udpLimit is how long an answer by UDP may be, in bytes.
func udpLimit(req *dns.Msg) int {
	if opt := req.IsEdns0(); opt != nil {
		return min(max(dns.MinMsgSize, int(opt.UDPSize())), udpSize)
	}
	return dns.MinMsgSize
}
