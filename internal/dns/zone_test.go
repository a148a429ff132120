package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

var (
	subnet  = netip.MustParsePrefix("172.30.4.0/22")
	records = []Record{
		{Name: "web", Addr: netip.MustParseAddr("172.30.4.2"), ID: "aa"},
		{Name: "db-1", Addr: netip.MustParseAddr("172.30.6.7"), ID: "bb"},
	}
)

func TestAnswers(t *testing.T) {
	z := newZone(7, subnet, records)
	for _, tc := range []struct{ question, want string }{
		{"web.vm. A", "NOERROR web.vm. 5 IN A 172.30.4.2"},
		{"wEb.VM. A", "NOERROR wEb.VM. 5 IN A 172.30.4.2"},
		{"a.b.c.web.vm. A", "NOERROR a.b.c.web.vm. 5 IN A 172.30.4.2"},
		{"*.web.vm. A", "NOERROR *.web.vm. 5 IN A 172.30.4.2"},
		{`x\.y.web.vm. A`, `NOERROR x\.y.web.vm. 5 IN A 172.30.4.2`},
		{`\000\255.web.vm. A`, `NOERROR \000\255.web.vm. 5 IN A 172.30.4.2`},
		{"web.vm. ANY", "NOERROR web.vm. 5 IN A 172.30.4.2"},
		{"db-1.vm. A", "NOERROR db-1.vm. 5 IN A 172.30.6.7"},
		{"web.vm. AAAA", "NOERROR soa vm."},
		{"x.web.vm. MX", "NOERROR soa vm."},
		{"nope.vm. A", "NXDOMAIN soa vm."},
		{"nope.vm. AAAA", "NXDOMAIN soa vm."},
		{"x.nope.vm. A", "NXDOMAIN soa vm."},
		{"*.vm. A", "NXDOMAIN soa vm."},
		{`web\.vm.vm. A`, "NXDOMAIN soa vm."},
		{`x\.web.vm. A`, "NXDOMAIN soa vm."}, // one label, x.web
		{"web.vm. CH A", "REFUSED"},
		{"vm. SOA", "NOERROR vm. 5 IN SOA localhost. nobody.invalid. 7 3600 1200 604800 5"},
		{"VM. NS", "NOERROR VM. 5 IN NS localhost."},
		{"vm. A", "NOERROR soa vm."},
		{`web\.vm. A`, "not ours"}, // one label at the top
		{"web.vm.example. A", "not ours"},
		{"webvm. A", "not ours"},
		{"xvm. A", "not ours"},
		{". NS", "not ours"},

		{"2.4.30.172.in-addr.arpa. PTR", "NOERROR 2.4.30.172.in-addr.arpa. 5 IN PTR web.vm."},
		{"7.6.30.172.IN-ADDR.arpa. PTR", "NOERROR 7.6.30.172.IN-ADDR.arpa. 5 IN PTR db-1.vm."},
		{"2.4.30.172.in-addr.arpa. A", "NOERROR soa 4.30.172.in-addr.arpa."},
		{"3.7.30.172.in-addr.arpa. PTR", "NXDOMAIN soa 7.30.172.in-addr.arpa."},
		{"x.2.4.30.172.in-addr.arpa. PTR", "NXDOMAIN soa 4.30.172.in-addr.arpa."},
		{"5.30.172.in-addr.arpa. PTR", "NOERROR soa 5.30.172.in-addr.arpa."},
		{"5.30.172.in-addr.arpa. SOA", "NOERROR 5.30.172.in-addr.arpa. 5 IN SOA localhost. nobody.invalid. 7 3600 1200 604800 5"},
		{"30.172.in-addr.arpa. PTR", "not ours"}, // others may have the rest of it
		{"2.8.30.172.in-addr.arpa. PTR", "not ours"},
		{"02.4.30.172.in-addr.arpa. PTR", "not ours"},
		{"256.4.30.172.in-addr.arpa. PTR", "not ours"},
		{"in-addr.arpa. NS", "not ours"},
		{"1.0.0.127.in-addr.arpa. PTR", "not ours"},
	} {
		if got := told(z, tc.question); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.question, got, tc.want)
		}
	}
}

// told puts a zone's answer into words.
func told(z *zone, text string) string {
	f := strings.Fields(text)
	q := dns.Question{Name: f[0], Qtype: dns.StringToType[f[len(f)-1]], Qclass: dns.ClassINET}
	if len(f) == 3 {
		q.Qclass = dns.StringToClass[f[1]]
	}
	a, ours := z.answer(q)
	if !ours {
		return "not ours"
	}
	s := dns.RcodeToString[a.rcode]
	for _, rr := range a.rrs {
		s += " " + strings.Join(strings.Fields(rr.String()), " ")
	}
	if len(a.rrs) == 0 && a.origin != "" {
		s += " soa " + a.origin
	}
	return s
}

func TestReverseZones(t *testing.T) {
	for _, tc := range []struct {
		subnet string
		want   []string
	}{
		{"172.30.4.0/24", []string{"4.30.172.in-addr.arpa"}},
		{"172.30.0.0/16", []string{"30.172.in-addr.arpa"}},
		{"172.30.4.0/22", []string{"4.30.172.in-addr.arpa", "5.30.172.in-addr.arpa", "6.30.172.in-addr.arpa", "7.30.172.in-addr.arpa"}},
		{"10.9.8.6/31", []string{"6.8.9.10.in-addr.arpa", "7.8.9.10.in-addr.arpa"}},
		{"10.9.8.7/32", []string{"7.8.9.10.in-addr.arpa"}},
	} {
		p := netip.MustParsePrefix(tc.subnet)
		if got := ReverseDomains(p); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %q, want %q", tc.subnet, got, tc.want)
		}
		z := newZone(1, p, nil)
		for _, d := range tc.want {
			if got := told(z, d+". SOA"); !strings.HasPrefix(got, "N") || !strings.Contains(got, d) {
				t.Errorf("%s: the zone %s: %s", tc.subnet, d, got)
			}
		}
	}
	if got := ReverseDomains(netip.Prefix{}); got != nil {
		t.Errorf("no subnet: %q", got)
	}
}

// Every address of a subnet, of whatever size, is answered for, and none beside it.
func TestReverseBounds(t *testing.T) {
	for bits := 20; bits <= 32; bits++ {
		p := netip.PrefixFrom(netip.MustParseAddr("10.20.176.77"), bits).Masked()
		z := newZone(1, p, nil)
		last := p.Addr()
		for n := 1 << (32 - bits); n > 1; n-- {
			last = last.Next()
		}
		for addr, ours := range map[netip.Addr]bool{p.Addr(): true, last: true, p.Addr().Prev(): false, last.Next(): false} {
			o := addr.As4()
			q := fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa. PTR", o[3], o[2], o[1], o[0])
			if got := told(z, q); (got != "not ours") != ours {
				t.Errorf("%s in %s: %s", addr, p, got)
			}
		}
	}
}

func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"web.vm.", `a\.b.web.vm.`, "2.4.30.172.in-addr.arpa.", "vm.", ".", `\`, "*.*.vm."} {
		f.Add(name, uint16(1), uint16(1))
	}
	z := newZone(1, subnet, records)
	f.Fuzz(func(t *testing.T, name string, qtype, class uint16) {
		m := new(dns.Msg)
		m.Question = []dns.Question{{Name: name, Qtype: qtype, Qclass: class}}
		wire, err := m.Pack()
		if err != nil || m.Unpack(wire) != nil || len(m.Question) != 1 {
			return // no name that a message can have
		}
		q := m.Question[0]
		a, ours := z.answer(q)
		if !ours {
			if len(a.rrs) > 0 {
				t.Errorf("%q is not ours, and answered: %v", name, a.rrs)
			}
			return
		}
		if _, err := z.message(m, a).Pack(); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		for _, rr := range a.rrs {
			if rr.Header().Name != q.Name || rr.Header().Ttl > TTL {
				t.Errorf("%q: %v", name, rr)
			}
		}
	})
}
