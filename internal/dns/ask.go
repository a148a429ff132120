package dns

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/miekg/dns"
)

// Ask asks a name server, by UDP, for the address of a host.
func Ask(ctx context.Context, server netip.AddrPort, host string) (netip.Addr, error) {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(host), dns.TypeA)
	answer, _, err := new(dns.Client).ExchangeContext(ctx, m, server.String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("ask %s for %s: %w", server, host, err)
	}
	for _, rr := range answer.Answer {
		if a, ok := rr.(*dns.A); ok {
			addr, _ := netip.AddrFromSlice(a.A.To4())
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s says that %s has no address (%s)", server, host, dns.RcodeToString[answer.Rcode])
}
