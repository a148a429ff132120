package dns

import (
	"net/netip"
	"slices"
	"strings"
)

// maxServers is how many name servers are taken from a file. The C library uses 3;
// systemd-resolved's file may list more.
const maxServers = 16

// stubs are the addresses of systemd-resolved's own resolver, which is no upstream.
var stubs = []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("127.0.0.54")}

// parseResolvConf returns the name servers of a resolv.conf (resolv.conf(5)), in order. What
// is no address is passed over, as the C library does.
func parseResolvConf(text string) (servers []netip.AddrPort) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		// A keyword begins in the first column; a comment line begins with # or ;.
		if len(fields) < 2 || fields[0] != "nameserver" || !strings.HasPrefix(line, "nameserver") {
			continue
		}
		addr, err := netip.ParseAddr(fields[1])
		if err != nil || addr.IsMulticast() {
			continue
		}
		server := netip.AddrPortFrom(addr.Unmap(), 53)
		if !slices.Contains(servers, server) && len(servers) < maxServers {
			servers = append(servers, server)
		}
	}
	return servers
}

// stubOnly tells whether all the servers are systemd-resolved's own resolver.
func stubOnly(servers []netip.AddrPort) bool {
	return len(servers) > 0 && !slices.ContainsFunc(servers, func(s netip.AddrPort) bool { return !slices.Contains(stubs, s.Addr()) })
}
