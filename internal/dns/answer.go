package dns

import (
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// ServeDNS answers one message; it implements dns.Handler.
func (l *Listener) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	resp := l.respond(req, w.RemoteAddr())
	if resp == nil {
		return
	}
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
		if opt := req.IsEdns0(); opt != nil {
			size = min(max(size, int(opt.UDPSize())), udpSize)
		}
	}
	resp.Truncate(size)
	_ = w.WriteMsg(resp) // who asked may be gone
}

// respond makes the answer to a message with one question.
func (l *Listener) respond(req *dns.Msg, from net.Addr) *dns.Msg {
	opt, one := edns(req)
	var resp *dns.Msg
	switch q := req.Question[0]; {
	case req.Opcode != dns.OpcodeQuery:
		resp = new(dns.Msg).SetRcode(req, dns.RcodeNotImplemented)
	case !one:
		resp = new(dns.Msg).SetRcode(req, dns.RcodeFormatError)
	case opt != nil && opt.Version() != 0:
		resp = new(dns.Msg).SetRcode(req, dns.RcodeBadVers)
	case q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR:
		resp = new(dns.Msg).SetRcode(req, dns.RcodeRefused)
	default:
		z := l.server.zone.Load()
		if a, ours := z.answer(q); ours {
			resp = z.message(req, a)
		} else {
			resp = l.rest(req, from)
		}
	}
	if resp != nil && opt != nil {
		resp.SetEdns0(udpSize, opt.Do())
	}
	return resp
}

// edns returns the message's OPT record, if it has one; one is false if it has several.
func edns(req *dns.Msg) (opt *dns.OPT, one bool) {
	for _, rr := range req.Extra {
		if o, ok := rr.(*dns.OPT); ok {
			if opt != nil {
				return opt, false
			}
			opt = o
		}
	}
	return opt, true
}

// message puts a zone's answer into an answer to req.
func (z *zone) message(req *dns.Msg, a answer) *dns.Msg {
	resp := new(dns.Msg).SetRcode(req, a.rcode)
	resp.Authoritative = true
	resp.Compress = true
	resp.Answer = a.rrs
	if len(a.rrs) == 0 && a.origin != "" {
		resp.Ns = []dns.RR{z.soa(a.origin)}
	}
	return resp
}

// rest deals with a question that is not about our zones: it is forwarded for guests. The
// host has resolvers of its own; one of them that asks here has been told to, and would be
// asked in turn.
func (l *Listener) rest(req *dns.Msg, from net.Addr) *dns.Msg {
	if !l.guests || l.server.fromHost(from) {
		return new(dns.Msg).SetRcode(req, dns.RcodeRefused)
	}
	return l.server.forward.answer(req)
}

// fromHost tells whether a question comes from the host itself. To reach an address of its own
// Linux sends from that very address, unless a program asks for another.
func (s *Server) fromHost(from net.Addr) bool {
	addr := addrOf(from)
	return addr.IsLoopback() || s.isOwn(addr)
}

func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
