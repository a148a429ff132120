package dns

import (
	"net"
	"testing"

	"github.com/miekg/dns"
)

// BenchmarkTake is what one question by UDP takes, without the kernel's part.
func BenchmarkTake(b *testing.B) {
	s := NewServer(list{})
	s.Set(subnet, records)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	u := newUDPServer(&Listener{server: s}, conn)
	wire, err := new(dns.Msg).SetQuestion("web.vm.", dns.TypeA).SetEdns0(1232, false).Pack()
	if err != nil {
		b.Fatal(err)
	}
	from := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5}
	b.ReportAllocs()
	for b.Loop() {
		u.take(wire, from)
		if len(u.out) != 1 {
			b.Fatal("no answer")
		}
		u.out = u.out[:0]
	}
}
