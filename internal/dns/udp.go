package dns

import (
	"errors"
	"net"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
)

// batch is how many messages are taken from the kernel, and given to it, at once. Under load
// the calls of the kernel are what costs most.
const batch = 64

// udpServer answers the messages that come on a socket: those about our zones at once, in
// turn, which takes microseconds; those that are forwarded each in its own time.
type udpServer struct {
	listener *Listener
	conn     *net.UDPConn
	packets  *ipv4.PacketConn
	out      []ipv4.Message
	bufs     [batch][]byte // for the answers in out
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
			continue // of one who asked before and is gone
		}
		for _, m := range in[:n] {
			s.take(m.Buffers[0][:m.N], m.Addr)
		}
		s.flush()
	}
}

// take deals with one message.
func (s *udpServer) take(wire []byte, from net.Addr) {
	req, resp := receive(wire)
	switch {
	case resp != nil:
		s.answer(resp, from)
	case req == nil:
	default:
		if resp = s.listener.local(req, from); resp != nil {
			fit(resp, udpLimit(req))
			s.answer(resp, from)
			return
		}
		go s.forward(req, from)
	}
}

// answer puts an answer to those that the next flush sends.
func (s *udpServer) answer(resp *dns.Msg, to net.Addr) {
	buf := s.bufs[len(s.out)]
	wire, err := resp.PackBuffer(buf)
	if err != nil {
		return // of nothing that a message can ask for
	}
	s.out = append(s.out, ipv4.Message{Buffers: [][]byte{wire}, Addr: to})
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
	case len(wire) < 12 || req.Response: // an answer is never answered
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
