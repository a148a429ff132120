package dns

import (
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// ServeDNS answers one message that came by TCP; it implements dns.Handler.
func (l *Listener) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	resp := l.local(l.server.zone.Load(), req, w.RemoteAddr())
	if resp == nil {
		resp = l.server.forward.answer(req)
		finish(req, resp)
	}
	fit(resp, dns.MaxMsgSize)
	_ = w.WriteMsg(resp) // who asked may be gone
}

// fit shortens an answer to what its asker takes. Our own are short: measuring them would
// take longer than making them.
func fit(resp *dns.Msg, size int) {
	if !resp.Authoritative {
		resp.Truncate(size)
	}
}

// local makes the answer to a message with one question, unless it is to be forwarded.
func (l *Listener) local(z *zone, req *dns.Msg, from net.Addr) (resp *dns.Msg) {
	opt, one := edns(req)
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
		a, ours := z.answer(q)
		switch {
		case ours:
			resp = z.message(req, a)
		case !l.forwards(from):
			resp = new(dns.Msg).SetRcode(req, dns.RcodeRefused)
		default:
			return nil
		}
	}
	finish(req, resp)
	return resp
}

// finish gives an answer its OPT record, if the question had one.
func finish(req, resp *dns.Msg) {
	if opt, _ := edns(req); opt != nil {
		resp.SetEdns0(udpSize, opt.Do())
	}
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

// forwards tells whether what is not about our zones is forwarded for who asks: for guests.
// The host has resolvers of its own; one of them that asks here has been told to, and would
// be asked in turn. To reach an address of its own Linux sends from that very address,
// unless a program wants another.
func (l *Listener) forwards(from net.Addr) bool {
	if !l.guests {
		return false
	}
	addr := addrOf(from)
	return !addr.IsLoopback() && !l.server.isOwn(addr)
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
