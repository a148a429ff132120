package network

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"

	"banger/internal/errs"
)

const (
	// subnetBits is the length of the prefix of a subnet that we choose: 1021 guests.
	subnetBits = 22
	minBits    = 16
	maxBits    = 29 // the network, the host, the broadcast address and five guests
)

// Used is an address range of the host's, and what it is there for.
type Used struct {
	Prefix netip.Prefix
	By     string // for people: "eth0", "a route of tun0"
}

// wideBits bounds the routes that count as the default route: a VPN may write that as two
// halves, or as all but some pieces. What is narrower is someone's network.
const wideBits = 8

// Overlap returns the first of what the host uses that overlaps the subnet.
func Overlap(subnet netip.Prefix, used []Used) (Used, bool) {
	for _, u := range used {
		if u.Prefix.Bits() >= wideBits && u.Prefix.Overlaps(subnet) {
			return u, true
		}
	}
	return Used{}, false
}

// ChooseSubnet picks a private subnet that overlaps nothing that the host uses. It prefers
// those that few choose. errs.Unavailable if there is none.
func ChooseSubnet(used []Used) (netip.Prefix, error) {
	for _, space := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"} {
		all := netip.MustParsePrefix(space)
		count := uint32(1) << (subnetBits - all.Bits())
		// Begun in the middle, for both ends are where people and their routers begin.
		for i := range count {
			subnet := nthSubnet(all, (count/2+count/8+i)%count)
			if _, taken := Overlap(subnet, used); !taken {
				return subnet, nil
			}
		}
	}
	return netip.Prefix{}, errs.New(errs.Unavailable, "every private IPv4 network overlaps a route of this host").
		Try("remove a route that is not needed, or use --net user")
}

func nthSubnet(space netip.Prefix, n uint32) netip.Prefix {
	return netip.PrefixFrom(plus(space.Masked().Addr(), n<<(32-subnetBits)), subnetBits)
}

func plus(a netip.Addr, n uint32) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+n)
	return netip.AddrFrom4(b)
}

// ParseSubnet reads a subnet that someone asks for. errs.Invalid if it can't be one.
func ParseSubnet(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	invalid := func(format string, args ...any) (netip.Prefix, error) {
		return netip.Prefix{}, errs.New(errs.Invalid, format, args...).Try("give a private IPv4 subnet of /%d to /%d, as in 10.86.0.0/22", minBits, maxBits)
	}
	switch {
	case err != nil:
		return invalid("%q is no subnet", text)
	case !p.Addr().Is4():
		return invalid("the subnet %s is not IPv4", p)
	case p.Bits() < minBits:
		return invalid("the subnet %s is too large", p)
	case p.Bits() > maxBits:
		return invalid("the subnet %s is too small", p)
	case p != p.Masked():
		return invalid("the subnet %s has bits set beyond its prefix", p)
	case !p.Addr().IsPrivate() && !carrierGrade.Contains(p.Addr()):
		return invalid("the subnet %s is not private", p)
	}
	return p, nil
}

// carrierGrade is the shared space that is as private as others to a host.
var carrierGrade = netip.MustParsePrefix("100.64.0.0/10")

// Allocate picks a free address of the subnet for a VM. Where it begins to look comes from
// the VM's id, so that an address does not pass at once from a VM that goes to the next.
// errs.Unavailable if all are taken.
func Allocate(subnet netip.Prefix, vm string, taken func(netip.Addr) bool) (netip.Prefix, error) {
	subnet = subnet.Masked()
	first := Gateway(subnet).Next()
	// Less the network's own address, the gateway's and the broadcast address.
	guests := uint32(1)<<(32-subnet.Bits()) - 3
	h := fnv.New32a()
	h.Write([]byte(vm))
	begin := h.Sum32() % guests
	for i := range guests {
		if a := plus(first, (begin+i)%guests); !taken(a) {
			return netip.PrefixFrom(a, subnet.Bits()), nil
		}
	}
	return netip.Prefix{}, errs.New(errs.Unavailable, "the subnet %s is full: it has %d VMs", subnet, guests).
		Try("remove VMs, or give them a larger subnet: banger network move SUBNET")
}
