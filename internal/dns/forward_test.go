package dns

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// upstream is a resolver of the host's that answers as handle does, and counts what it is asked.
type upstream struct {
	addr  netip.AddrPort
	asked atomic.Int64
}

func newUpstream(t *testing.T, handle func(w dns.ResponseWriter, m *dns.Msg)) *upstream {
	t.Helper()
	packets, stream, err := sockets(loopback)
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: packets.LocalAddr().(*net.UDPAddr).AddrPort()}
	counted := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		u.asked.Add(1)
		handle(w, m)
	})
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: counted, UDPSize: dns.MaxMsgSize}, {Listener: stream, Handler: counted}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go s.ActivateAndServe()
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	return u
}

func rr(text string) dns.RR {
	r, err := dns.NewRR(text)
	if err != nil {
		panic(err)
	}
	return r
}

// honest answers each question about an address with the same one.
func honest(w dns.ResponseWriter, m *dns.Msg) {
	r := new(dns.Msg).SetReply(m)
	r.RecursionAvailable = true
	r.Answer = []dns.RR{rr(m.Question[0].Name + " 300 IN A 192.0.2.80")}
	w.WriteMsg(r)
}

// refusing answers with nothing but a code.
func refusing(code int) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, m *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(m, code)) }
}

func silent(dns.ResponseWriter, *dns.Msg) {}

// guestServer serves guests and forwards to ups.
func guestServer(t *testing.T, ups ...netip.AddrPort) (*Server, *Listener) {
	t.Helper()
	s := NewServer(list(ups))
	s.Set(subnet, records)
	l, err := s.ServeGuests(loopback)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, l) })
	return s, l
}

// guest asks as a guest does: from an address that is not the one it asks.
func guest(t *testing.T, network string, l *Listener, m *dns.Msg) *dns.Msg {
	t.Helper()
	r, err := guestExchange(network, l, m, guestAddr(t))
	if err != nil {
		t.Fatalf("%s %v: %v", network, m.Question, err)
	}
	return r
}

func guestExchange(network string, l *Listener, m *dns.Msg, from net.IP) (*dns.Msg, error) {
	var local net.Addr = &net.UDPAddr{IP: from}
	if network == "tcp" {
		local = &net.TCPAddr{IP: from}
	}
	c := dns.Client{Net: network, Timeout: askLimit + time.Second, UDPSize: dns.MinMsgSize, Dialer: &net.Dialer{LocalAddr: local}}
	r, _, err := c.Exchange(m, l.Addr().String())
	return r, err
}

func guestAddr(t *testing.T) net.IP {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip := a.(*net.IPNet).IP.To4(); ip != nil && !ip.IsLoopback() {
			return ip
		}
	}
	t.Skip("SKIP: this host has no address but its loopback's, so nobody can ask as a guest does")
	return nil
}

func TestTheRestIsForwardedForGuests(t *testing.T) {
	u := newUpstream(t, honest)
	_, l := guestServer(t, u.addr)
	for _, network := range []string{"udp", "tcp"} {
		r := guest(t, network, l, question1("wWw.Example.com.", dns.TypeA))
		if len(r.Answer) != 1 || r.Answer[0].String() != "wWw.Example.com.\t300\tIN\tA\t192.0.2.80" || r.Authoritative || !r.RecursionAvailable {
			t.Errorf("%s: %v", network, r)
		}
	}
	asked := u.asked.Load()
	for _, name := range []string{"web.vm.", "nope.vm.", "x.y.nope.VM.", "9.4.30.172.in-addr.arpa."} {
		if r := guest(t, "udp", l, question1(name, dns.TypeA)); !r.Authoritative {
			t.Errorf("%s: %v", name, r)
		}
	}
	if u.asked.Load() != asked {
		t.Error("an upstream was asked about our own zones")
	}
}

// What the host itself asks is not forwarded: its resolver may be the one that we would ask.
func TestTheHostIsNotForwardedFor(t *testing.T) {
	u := newUpstream(t, honest)
	_, l := guestServer(t, u.addr)
	for _, network := range []string{"udp", "tcp"} {
		if r := ask(t, network, l.Addr().String(), question1("example.com.", dns.TypeA)); r.Rcode != dns.RcodeRefused {
			t.Errorf("%s: %v", network, r)
		}
		if r := ask(t, network, l.Addr().String(), question1("web.vm.", dns.TypeA)); len(r.Answer) != 1 {
			t.Errorf("%s: a name of ours: %v", network, r)
		}
	}
	if u.asked.Load() != 0 {
		t.Error("the upstream was asked")
	}
}

func TestUpstreamsThatFail(t *testing.T) {
	good := newUpstream(t, honest)
	gone := newUpstream(t, honest) // whose port is closed
	free, _, err := net.SplitHostPort(gone.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	closedPort := netip.MustParseAddrPort(free + ":1")
	for name, bad := range map[string]netip.AddrPort{
		"refuses":         newUpstream(t, refusing(dns.RcodeRefused)).addr,
		"fails":           newUpstream(t, refusing(dns.RcodeServerFailure)).addr,
		"is silent":       newUpstream(t, silent).addr,
		"is not there":    closedPort,
		"answers another": newUpstream(t, lying(func(m *dns.Msg) { m.Question[0].Name = "example.net." })).addr,
		"has another id":  newUpstream(t, lying(func(m *dns.Msg) { m.Id++ })).addr,
		"asks back":       newUpstream(t, lying(func(m *dns.Msg) { m.Response = false })).addr,
		"claims our zone": newUpstream(t, lying(func(m *dns.Msg) { m.Answer = append(m.Answer, rr("web.VM. 300 IN A 192.0.2.66")) })).addr,
		"sends junk":      newUpstream(t, func(w dns.ResponseWriter, _ *dns.Msg) { w.Write([]byte("junk, and more than a header")) }).addr,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, l := guestServer(t, bad, good.addr)
			if r := guest(t, "udp", l, question1("example.com.", dns.TypeA)); len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "192.0.2.80" {
				t.Errorf("%v", r)
			}
			if first := s.forward.inOrder()[0]; first != good.addr {
				t.Errorf("the next question goes to %s", first)
			}
		})
	}
}

// lying answers honestly but for one thing.
func lying(lie func(*dns.Msg)) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		r.Answer = []dns.RR{rr(m.Question[0].Name + " 300 IN A 192.0.2.66")}
		lie(r)
		w.WriteMsg(r)
	}
}

// A forged answer that comes first does not keep the true one out.
func TestForgedAnswersArePassedOver(t *testing.T) {
	u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		lying(func(r *dns.Msg) { r.Id++ })(w, m)
		w.Write([]byte{1, 2, 3})
		w.Write([]byte("junk, and more than a header"))
		honest(w, m)
	})
	_, l := guestServer(t, u.addr)
	if r := guest(t, "udp", l, question1("example.com.", dns.TypeA)); len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "192.0.2.80" {
		t.Errorf("%v", r)
	}
}

func TestAllUpstreamsFail(t *testing.T) {
	for name, tc := range map[string]struct {
		handle func(dns.ResponseWriter, *dns.Msg)
		want   int
	}{
		"refuse":      {refusing(dns.RcodeRefused), dns.RcodeRefused},
		"fail":        {refusing(dns.RcodeServerFailure), dns.RcodeServerFailure},
		"are silent":  {silent, dns.RcodeServerFailure},
		"do not know": {refusing(dns.RcodeNameError), dns.RcodeNameError},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, l := guestServer(t, newUpstream(t, tc.handle).addr)
			begin := time.Now()
			if r := guest(t, "udp", l, question1("example.com.", dns.TypeA)); r.Rcode != tc.want {
				t.Errorf("%v", r)
			}
			if took := time.Since(begin); took > 2*askLimit {
				t.Errorf("it took %s", took)
			}
		})
	}
	_, l := guestServer(t)
	if r := guest(t, "udp", l, question1("example.com.", dns.TypeA)); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("without an upstream: %v", r)
	}
}

// A long answer comes by TCP from the upstream, and to the guest if that asks by UDP in part.
func TestLongAnswers(t *testing.T) {
	const texts = 40
	u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			r.Truncated = true
		} else {
			for i := range texts {
				r.Answer = append(r.Answer, rr(fmt.Sprintf("%s 60 IN TXT \"%d %s\"", m.Question[0].Name, i, strings.Repeat("x", 100))))
			}
		}
		w.WriteMsg(r)
	})
	_, l := guestServer(t, u.addr)
	r := guest(t, "udp", l, question1("long.example.", dns.TypeTXT))
	r.Compress = true
	if !r.Truncated || len(r.Answer) >= texts || r.Len() > dns.MinMsgSize {
		t.Errorf("by UDP: %v", r)
	}
	if r := guest(t, "tcp", l, question1("long.example.", dns.TypeTXT)); r.Truncated || len(r.Answer) != texts {
		t.Errorf("by TCP: %d answers", len(r.Answer))
	}
}

// What is said between the guest and us, and between us and the upstream, stays there.
func TestEDNSIsOfEachHop(t *testing.T) {
	var seen atomic.Pointer[dns.Msg]
	u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		seen.Store(m.Copy())
		r := new(dns.Msg).SetReply(m).SetEdns0(512, true)
		r.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001, Data: []byte{1}}}
		w.WriteMsg(r)
	})
	_, l := guestServer(t, u.addr)
	m := question1("example.com.", dns.TypeA).SetEdns0(4096, true)
	m.CheckingDisabled = true
	m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65002, Data: []byte{2}}}
	r := guest(t, "udp", l, m)
	up := seen.Load()
	if o := up.IsEdns0(); o == nil || !o.Do() || len(o.Option) != 0 || o.UDPSize() != udpSize || !up.CheckingDisabled || up.Id == m.Id {
		t.Errorf("the upstream was asked %v", up)
	}
	if o := r.IsEdns0(); o == nil || len(o.Option) != 0 || o.UDPSize() != udpSize {
		t.Errorf("the guest got %v", r)
	}
	if r := guest(t, "udp", l, question1("example.com.", dns.TypeA)); r.IsEdns0() != nil {
		t.Errorf("EDNS for one who has not said it: %v", r)
	}
}

// changing is a list of resolvers that changes.
type changing struct{ atomic.Pointer[list] }

func (c *changing) Servers() []netip.AddrPort {
	if l := c.Load(); l != nil {
		return *l
	}
	return nil
}

// However the circle is closed, a question goes round it once.
func TestCircles(t *testing.T) {
	t.Parallel()
	from := guestAddr(t)
	t.Run("resolv.conf names us", func(t *testing.T) {
		var ups changing
		s := NewServer(&ups)
		l, err := s.ServeGuests(loopback)
		if err != nil {
			t.Fatal(err)
		}
		defer closed(t, l)
		for _, same := range []netip.AddrPort{l.Addr(), netip.AddrPortFrom(netip.IPv4Unspecified(), l.Addr().Port())} {
			ups.Store(&list{same})
			if got := s.Upstreams(); len(got) != 0 {
				t.Errorf("%s is an upstream: %v", same, got)
			}
			if r := guest(t, "udp", l, question1("example.com.", dns.TypeA)); r.Rcode != dns.RcodeServerFailure {
				t.Errorf("%v", r)
			}
		}
	})
	t.Run("our upstream asks us", func(t *testing.T) {
		for _, tc := range []struct {
			how  string
			from net.IP
		}{{"from the host's own", nil}, {"as a guest does", from}} {
			us := make(chan *Listener, 1)
			u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
				l := <-us
				us <- l
				again := question1(strings.ToUpper(m.Question[0].Name), m.Question[0].Qtype).SetEdns0(1232, false)
				if r, err := guestExchange("udp", l, again, tc.from); err == nil {
					r.Id, r.Question = m.Id, m.Question
					w.WriteMsg(r)
				}
			})
			_, l := guestServer(t, u.addr)
			us <- l
			r, err := guestExchange("udp", l, question1("example.com.", dns.TypeA).SetEdns0(1232, false), from)
			if err != nil || r.Rcode != dns.RcodeServerFailure && r.Rcode != dns.RcodeRefused {
				t.Errorf("%s: %v, %v", tc.how, r, err)
			}
			if n := u.asked.Load(); n > 4 { // once for each try in the time that there is
				t.Errorf("%s: the upstream was asked %d times", tc.how, n)
			}
		}
	})
}

// Many who ask the same thing are answered from one question.
func TestOneQuestionIsAskedOnce(t *testing.T) {
	release := make(chan struct{})
	u := newUpstream(t, func(w dns.ResponseWriter, m *dns.Msg) {
		<-release
		honest(w, m)
	})
	s, l := guestServer(t, u.addr)
	from := guestAddr(t)
	const askers = 50
	var wg sync.WaitGroup
	for i := range askers {
		wg.Go(func() {
			name := "eXample.com."
			if i%2 == 0 {
				name = "example.COM."
			}
			r, err := guestExchange("udp", l, question1(name, dns.TypeA), from)
			if err != nil || len(r.Answer) != 1 || r.Answer[0].Header().Name != name {
				t.Errorf("%s: %v, %v", name, r, err)
			}
		})
	}
	for s.forward.waiting.Load() < askers {
		time.Sleep(time.Millisecond)
	}
	close(release)
	wg.Wait()
	if n := u.asked.Load(); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

// Guests that ask ever new things of a silent upstream can't take all that the daemon has.
func TestTooMuchIsRefused(t *testing.T) {
	u := newUpstream(t, silent)
	s, l := guestServer(t, u.addr)
	conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: guestAddr(t)}, net.UDPAddrFromAddrPort(l.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 1500)
	for i := range maxFlights + 20 {
		if _, err := conn.Write(mustPack(question1(fmt.Sprintf("n%d.example.", i), dns.TypeA))); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 { // those beyond the limit are answered at once
		n, err := conn.Read(buf)
		var m dns.Msg
		if err != nil || m.Unpack(buf[:n]) != nil || m.Rcode != dns.RcodeServerFailure {
			t.Fatalf("%v, %v", m, err)
		}
	}
	s.forward.mu.Lock()
	flying := len(s.forward.flights)
	s.forward.mu.Unlock()
	if flying > maxFlights {
		t.Errorf("%d questions are on their way", flying)
	}
	if r := guest(t, "udp", l, question1("web.vm.", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("a name of ours meanwhile: %v", r)
	}
}
