package dns

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// list is a list of resolvers that does not change.
type list []netip.AddrPort

func (l list) Servers() []netip.AddrPort { return l }

// loopback is a free port of this host's.
var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// hostServer serves the test's records to the host.
func hostServer(t *testing.T) (*Server, string) {
	t.Helper()
	s := NewServer(list{})
	s.Set(subnet, records)
	l, err := s.ServeHost(loopback)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, l) })
	return s, l.Addr().String()
}

func closed(t *testing.T, l *Listener) {
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// ask asks by udp or tcp and returns the answer.
func ask(t *testing.T, network, addr string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 10 * time.Second}
	r, _, err := c.Exchange(m, addr)
	if err != nil {
		t.Fatalf("%s %v: %v", network, m.Question, err)
	}
	return r
}

func question1(name string, t uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, t) }

func TestByUDPAndTCP(t *testing.T) {
	_, addr := hostServer(t)
	for _, network := range []string{"udp", "tcp"} {
		for range 2 { // the second answer is one that was kept
			r := ask(t, network, addr, question1("wEb.vM.", dns.TypeA))
			if len(r.Answer) != 1 || r.Answer[0].Header().Name != "wEb.vM." || r.Question[0].Name != "wEb.vM." ||
				r.Answer[0].Header().Ttl > 5 || !r.Authoritative || r.RecursionAvailable {
				t.Errorf("%s: a name: %v", network, r)
			}
			r = ask(t, network, addr, question1("nope.vm.", dns.TypeA))
			if r.Rcode != dns.RcodeNameError || len(r.Ns) != 1 || r.Ns[0].(*dns.SOA).Minttl > 5 || r.Ns[0].Header().Ttl > 5 {
				t.Errorf("%s: no such name: %v", network, r)
			}
			r = ask(t, network, addr, question1("example.com.", dns.TypeA))
			if r.Rcode != dns.RcodeRefused || r.Authoritative {
				t.Errorf("%s: another's name: %v", network, r)
			}
		}
	}
}

func TestTheLatestRecordsAreServed(t *testing.T) {
	s, addr := hostServer(t)
	first := ask(t, "udp", addr, question1("vm.", dns.TypeSOA)).Answer[0].(*dns.SOA)
	for _, tc := range []struct {
		records []Record
		want    string
	}{
		{[]Record{{Name: "web", Addr: netip.MustParseAddr("172.30.4.9")}}, "172.30.4.9"},
		{nil, "NXDOMAIN"},
		{records, "172.30.4.2"},
	} {
		s.Set(subnet, tc.records)
		r := ask(t, "udp", addr, question1("web.vm.", dns.TypeA))
		got := dns.RcodeToString[r.Rcode]
		if len(r.Answer) == 1 {
			got = r.Answer[0].(*dns.A).A.String()
		}
		if got != tc.want {
			t.Errorf("with %v: got %s, want %s", tc.records, got, tc.want)
		}
	}
	last := ask(t, "udp", addr, question1("vm.", dns.TypeSOA)).Answer[0].(*dns.SOA)
	if last.Serial != first.Serial+3 {
		t.Errorf("the serial went from %d to %d", first.Serial, last.Serial)
	}
}

func TestEDNS(t *testing.T) {
	_, addr := hostServer(t)
	r := ask(t, "udp", addr, question1("web.vm.", dns.TypeA))
	if r.IsEdns0() != nil {
		t.Errorf("EDNS for one who has not said it: %v", r)
	}
	r = ask(t, "udp", addr, question1("web.vm.", dns.TypeA).SetEdns0(4096, true))
	if o := r.IsEdns0(); o == nil || o.UDPSize() != udpSize || !o.Do() || o.Version() != 0 || len(r.Answer) != 1 {
		t.Errorf("with EDNS: %v", r)
	}
	m := question1("web.vm.", dns.TypeA).SetEdns0(1232, false)
	m.IsEdns0().SetVersion(1)
	if r = ask(t, "udp", addr, m); r.Rcode != dns.RcodeBadVers || r.IsEdns0() == nil || len(r.Answer) != 0 {
		t.Errorf("a version to come: %v", r)
	}
	m = question1("web.vm.", dns.TypeA).SetEdns0(1232, false).SetEdns0(1232, false)
	if r = ask(t, "udp", addr, m); r.Rcode != dns.RcodeFormatError {
		t.Errorf("two OPT records: %v", r)
	}
	m = question1("web.vm.", dns.TypeA).SetEdns0(1232, false)
	m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001, Data: []byte{1}}}
	if r = ask(t, "udp", addr, m); len(r.Answer) != 1 || len(r.IsEdns0().Option) != 0 {
		t.Errorf("an option that nobody knows: %v", r)
	}
}

// What is no proper question is answered as that, or not at all, and does no harm.
func TestBadMessages(t *testing.T) {
	_, addr := hostServer(t)
	good, err := question1("web.vm.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	header := func(flags byte, questions byte) []byte {
		return append([]byte{7, 7, flags, 0, 0, questions, 0, 0, 0, 0, 0, 0}, good[12:]...)
	}
	for name, tc := range map[string]struct {
		wire  []byte
		rcode int // -1: no answer
	}{
		"empty":            {[]byte{}, -1},
		"short":            {good[:11], -1},
		"cut":              {good[:len(good)-3], dns.RcodeFormatError},
		"an answer":        {header(0x80, 1), -1},
		"two questions":    {append(header(1, 2), good[12:]...), dns.RcodeFormatError},
		"no question":      {header(1, 0)[:12], dns.RcodeFormatError},
		"an update":        {header(5<<3, 1), dns.RcodeNotImplemented},
		"a notification":   {header(4<<3, 1), dns.RcodeNotImplemented},
		"an endless name":  {append([]byte{7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, 0xc0, 12, 0, 1, 0, 1), dns.RcodeFormatError},
		"a zone transfer":  {mustPack(question1("vm.", dns.TypeAXFR)), dns.RcodeRefused},
		"the rest is junk": {append(bytes.Clone(good), 1, 2, 3), dns.RcodeSuccess},
	} {
		conn, err := net.Dial("udp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		// A good question after it: answers come in turn, so one to the first would be before.
		last := bytes.Clone(good)
		last[0], last[1] = 9, 9
		conn.Write(tc.wire)
		conn.Write(last)
		got := -1
		for buf := make([]byte, 1500); ; {
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			var m dns.Msg
			if err := m.Unpack(buf[:n]); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if m.Id == 9<<8|9 {
				break
			}
			got = m.Rcode
		}
		conn.Close()
		if got != tc.rcode {
			t.Errorf("%s: got %d, want %d", name, got, tc.rcode)
		}
	}
}

func mustPack(m *dns.Msg) []byte {
	wire, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return wire
}

func TestDig(t *testing.T) {
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip("SKIP: dig is not installed (Debian's bind9-dnsutils)")
	}
	_, addr := hostServer(t)
	host, port, _ := net.SplitHostPort(addr)
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"web.vm"}, []string{"status: NOERROR", "flags: qr aa rd;", "web.vm.\t\t\t5\tIN\tA\t172.30.4.2"}},
		{[]string{"+tcp", "+nocookie", "X.web.VM"}, []string{"X.web.VM.\t\t5\tIN\tA\t172.30.4.2"}},
		{[]string{"-x", "172.30.4.2"}, []string{"PTR\tweb.vm."}},
		{[]string{"nope.vm"}, []string{"status: NXDOMAIN", "vm.\t\t\t5\tIN\tSOA\tlocalhost."}},
		{[]string{"web.vm", "AAAA"}, []string{"status: NOERROR", "ANSWER: 0", "vm.\t\t\t5\tIN\tSOA"}},
		{[]string{"example.com"}, []string{"status: REFUSED"}},
		{[]string{"+edns=3", "+noednsnegotiation", "web.vm"}, []string{"status: BADVERS"}},
		{[]string{`a\.b.web.vm`}, []string{`a\.b.web.vm.`, "A\t172.30.4.2"}},
		{[]string{"+qr", "axfr", "vm"}, []string{"Transfer failed"}},
	} {
		out, err := exec.Command("dig", append([]string{"@" + host, "-p", port, "+tries=1", "+time=5"}, tc.args...)...).CombinedOutput()
		for _, want := range tc.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("dig %q (%v) lacks %q:\n%s", tc.args, err, want, out)
			}
		}
	}
}

// Ten thousand questions a second, for three seconds, are all answered, while records change.
func TestNothingIsLost(t *testing.T) {
	if os.Getenv("BANGER_LAB") != "" {
		t.Skip("SKIP: a lab that is translated has no time for as many")
	}
	s, addr := hostServer(t)
	const askers, each, rate = 4, 7500, 10_000
	var wg sync.WaitGroup
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			default:
				s.Set(subnet, records)
				time.Sleep(time.Millisecond)
			}
		}
	}()
	for range askers {
		wg.Go(func() {
			conn, err := net.Dial("udp4", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if err := conn.(*net.UDPConn).SetReadBuffer(socketBuffer); err != nil { // nor may the asker lose any
				t.Error(err)
			}
			answered := make(chan int)
			go func() {
				buf, n := make([]byte, 1500), 0
				for n < each {
					if _, err := conn.Read(buf); err != nil {
						break
					}
					n++
				}
				answered <- n
			}()
			wire := mustPack(question1("web.vm.", dns.TypeA))
			begin := time.Now()
			for i := range each {
				time.Sleep(time.Until(begin.Add(time.Duration(i) * askers * time.Second / rate)))
				wire[0], wire[1] = byte(i>>8), byte(i)
				if _, err := conn.Write(wire); err != nil {
					t.Error(err)
				}
			}
			conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if n := <-answered; n != each {
				t.Errorf("%d of %d questions were answered", n, each)
			}
		})
	}
	wg.Wait()
	close(done)
}

func TestAnAddressThatIsTaken(t *testing.T) {
	s, addr := hostServer(t)
	_, err := s.ServeHost(netip.MustParseAddrPort(addr))
	if err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("a second listener: %v", err)
	}
	if _, err := s.ServeHost(netip.MustParseAddrPort("192.0.2.1:0")); err == nil {
		t.Error("listens on an address that the host has not")
	}
}

func TestAddressesAreFreeAgain(t *testing.T) {
	s := NewServer(list{})
	l, err := s.ServeHost(loopback)
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr()
	for range 3 {
		conn, err := net.Dial("tcp4", addr.String()) // one that says nothing
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		closed(t, l)
		closed(t, l) // a second time does nothing
		if l, err = s.ServeHost(addr); err != nil {
			t.Fatal(err)
		}
	}
	closed(t, l)
	if s.isOwn(addr.Addr()) {
		t.Error("it is still taken for ours")
	}
}

func ExampleServer() {
	s := NewServer(list{})
	s.Set(netip.MustParsePrefix("10.0.0.0/24"), []Record{{Name: "web", Addr: netip.MustParseAddr("10.0.0.2")}})
	l, err := s.ServeHost(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	r, err := dns.Exchange(new(dns.Msg).SetQuestion("web.vm.", dns.TypeA), l.Addr().String())
	fmt.Println(r.Answer[0].(*dns.A).A, err)
	// Output: 10.0.0.2 <nil>
}
