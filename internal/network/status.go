package network

import (
	"context"
	"net"
	"net/netip"
	"os"
)

// Status is what there is to see of a bridge.
type Status struct {
	Bridge  string       // its name, or that which it is to have
	Subnet  netip.Prefix // zero while nobody is on it
	Ports   []Port       // by VM id
	Rules   []string     // what the packet filter does, in words
	Overlap string       // what is wrong with the subnet, as a sentence, or empty
	Problem string       // why guests may not reach beyond the host, or empty
}

// Status tells how the bridge is.
func (b *Bridge) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.config()
	s := Status{Bridge: b.name, Subnet: c.Subnet(), Ports: c.Ports}
	if s.Bridge == "" {
		s.Bridge, _, _ = findBridge(b.kernel.owner, b.Name) // empty where there can be none, which Check says
	}
	for _, t := range b.rules {
		for _, chain := range t.Chains {
			for _, r := range chain.Rules {
				s.Rules = append(s.Rules, r.Says)
			}
		}
	}
	if b.overlap != "" {
		s.Overlap = overlapText(s.Subnet, b.overlap)
	}
	if b.unforwarded != nil {
		s.Problem = b.unforwarded.Error()
	}
	return s
}

// Nameservers are those that guests of a subnet are to ask: the host itself.
func (b *Bridge) Nameservers(subnet netip.Prefix) []netip.Addr {
	return []netip.Addr{Gateway(subnet)}
}

// Tidy removes what is there of ours and no port accounts for.
func (b *Bridge) Tidy(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rules = nil // whatever may have become of them
	return b.apply()
}

// TryListen tells why a port of the host's can't be forwarded from, if it can't.
func TryListen(f Forward) error {
	var ln interface{ Close() error }
	var err error
	if f.Protocol == "udp" {
		ln, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(f.Host))
	} else {
		ln, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(f.Host))
	}
	if err != nil {
		return ListenError(f, err)
	}
	return ln.Close()
}

// root tells whether this process may have any bridge at all.
func root() bool { return os.Geteuid() == 0 }
