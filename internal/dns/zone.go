package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Domain is the zone of the names, with the final dot.
const Domain = "vm."

// TTL is how long answers may be kept, in seconds, negative ones too.
const TTL = 5

// Record says that the host Name.vm, and whatever is below that name, is at Addr.
type Record struct {
	Name string     // a DNS label in lower case
	Addr netip.Addr // IPv4
	ID   string     // of whatever bears the name: carried along, and of no meaning here
}

// zone is an immutable snapshot of what the server is authoritative for: the names, and the
// reverse of the subnet that their addresses are from.
type zone struct {
	serial  uint32
	subnet  netip.Prefix // invalid: no reverse zone
	records []Record     // by name
	addrs   map[string]netip.Addr
	names   map[netip.Addr]string
}

func newZone(serial uint32, subnet netip.Prefix, records []Record) *zone {
	z := &zone{serial: serial, subnet: subnet.Masked(), records: slices.Clone(records),
		addrs: map[string]netip.Addr{}, names: map[netip.Addr]string{}}
	slices.SortFunc(z.records, func(a, b Record) int { return strings.Compare(a.Name, b.Name) })
	for _, r := range z.records {
		z.addrs[r.Name] = r.Addr
		z.names[r.Addr] = r.Name
	}
	return z
}

// answer is what a zone says to a question.
type answer struct {
	rcode  int
	rrs    []dns.RR
	origin string // of the zone whose SOA belongs into a negative answer
}

// answer answers a question. Questions about names that are not in a zone of ours are not
// ours to answer. Answers bear the name as it was asked for, in its case.
func (z *zone) answer(q dns.Question) (a answer, ours bool) {
	name := strings.ToLower(q.Name)
	switch {
	case dns.IsSubDomain(Domain, name):
		a = z.forward(name, q)
	case dns.IsSubDomain("in-addr.arpa.", name):
		if a, ours = z.reverse(name, q); !ours {
			return answer{}, false
		}
	default:
		return answer{}, false
	}
	if q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY {
		return answer{rcode: dns.RcodeRefused}, true
	}
	return a, true
}

// forward answers about a name in .vm.
func (z *zone) forward(name string, q dns.Question) answer {
	if name == Domain {
		return z.apex(Domain, q)
	}
	labels := dns.SplitDomainName(name) // knows of escapes: a\.b is one label
	addr, known := z.addrs[labels[len(labels)-2]]
	if !known {
		return answer{rcode: dns.RcodeNameError, origin: Domain}
	}
	a := answer{origin: Domain}
	if q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY {
		a.rrs = []dns.RR{&dns.A{Hdr: header(q.Name, dns.TypeA), A: addr.AsSlice()}}
	}
	return a
}

// apex answers about the origin of a zone. There is no name server to name: the zone is
// served to this host and its guests only. What stands for one is what RFC 6303 has for such.
func (z *zone) apex(origin string, q dns.Question) answer {
	a := answer{origin: origin}
	switch q.Qtype {
	case dns.TypeSOA, dns.TypeANY:
		a.rrs = []dns.RR{z.soa(q.Name)}
	case dns.TypeNS:
		a.rrs = []dns.RR{&dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: "localhost."}}
	}
	return a
}

// reverse answers about a name in in-addr.arpa, if it is in the subnet's reverse.
func (z *zone) reverse(name string, q dns.Question) (a answer, ours bool) {
	octets, extra, ok := parseReverse(name)
	if !ok || !z.subnet.IsValid() || len(octets) == 0 {
		return answer{}, false
	}
	var bytes [4]byte
	copy(bytes[:], octets)
	addr := netip.AddrFrom4(bytes)
	cut := z.cut()
	if len(octets) < cut || !z.subnet.Contains(addr) {
		return answer{}, false
	}
	origin := reverseName(octets[:cut])
	switch vm, known := z.names[addr]; {
	case extra, len(octets) == 4 && !known:
		return answer{rcode: dns.RcodeNameError, origin: origin}, true
	case len(octets) == cut && cut < 4:
		return z.apex(origin, q), true
	case known && len(octets) == 4 && (q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY):
		ptr := &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: vm + "." + Domain}
		return answer{rrs: []dns.RR{ptr}, origin: origin}, true
	}
	return answer{origin: origin}, true // a name with others below it, or a type that it has not
}

// cut is how many octets the names of the reverse zones have: the fewest that lie wholly in
// the subnet.
func (z *zone) cut() int { return max(1, (z.subnet.Bits()+7)/8) }

// parseReverse reads the octets of a name in in-addr.arpa. extra: there is more before four.
func parseReverse(name string) (octets []byte, extra, ok bool) {
	labels := dns.SplitDomainName(name)
	labels = labels[:len(labels)-2]
	slices.Reverse(labels)
	for i, label := range labels {
		if i == 4 {
			return octets, true, true
		}
		n, err := strconv.ParseUint(label, 10, 8)
		if err != nil || strconv.FormatUint(n, 10) != label {
			return nil, false, false
		}
		octets = append(octets, byte(n))
	}
	return octets, false, true
}

func reverseName(octets []byte) string {
	var b strings.Builder
	for _, o := range slices.Backward(octets) {
		b.WriteString(strconv.Itoa(int(o)) + ".")
	}
	return b.String() + "in-addr.arpa."
}

// ReverseDomains returns the names of the reverse zones of subnet, without final dots, for a
// resolver that is to send questions about them here.
func ReverseDomains(subnet netip.Prefix) (domains []string) {
	if !subnet.IsValid() {
		return nil
	}
	z := newZone(0, subnet, nil)
	cut := z.cut()
	first := subnet.Masked().Addr().As4()
	for n := range 1 << (8*cut - max(subnet.Bits(), 0)) {
		octets := first
		octets[cut-1] += byte(n)
		domains = append(domains, strings.TrimSuffix(reverseName(octets[:cut]), "."))
	}
	return domains
}

// soa is the zone's SOA. Its minimum bounds how long a negative answer may be kept (RFC 2308).
func (z *zone) soa(origin string) dns.RR {
	return &dns.SOA{Hdr: header(origin, dns.TypeSOA), Ns: "localhost.", Mbox: "nobody.invalid.",
		Serial: z.serial, Refresh: 3600, Retry: 1200, Expire: 604800, Minttl: TTL}
}

func header(name string, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: TTL}
}
