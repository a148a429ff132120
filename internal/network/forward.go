package network

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"banger/internal/errs"
)

// Forward makes a port of the guest's one of the host's.
type Forward struct {
	Protocol string         `json:"protocol"` // tcp or udp
	Host     netip.AddrPort `json:"host"`
	Guest    uint16         `json:"guest"`
}

// loopback is where a port is forwarded from unless another address is asked for.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// ParseForward reads [HOSTIP:]HOST:GUEST[/tcp|/udp]. errs.Invalid.
func ParseForward(text string) (Forward, error) {
	invalid := func(why string) (Forward, error) {
		return Forward{}, errs.New(errs.Invalid, "%q is no port to forward: %s", text, why).
			Try("write it as HOST:GUEST, HOSTIP:HOST:GUEST or HOST:GUEST/udp, as in 8080:80")
	}
	f := Forward{Protocol: "tcp"}
	rest, protocol, given := strings.Cut(text, "/")
	if given {
		f.Protocol = protocol
	}
	if f.Protocol != "tcp" && f.Protocol != "udp" {
		return invalid("the protocols are tcp and udp")
	}
	parts := strings.Split(rest, ":")
	address := loopback
	if len(parts) == 3 {
		var err error
		if address, err = netip.ParseAddr(parts[0]); err != nil || !address.Is4() {
			return invalid(fmt.Sprintf("%q is no IPv4 address", parts[0]))
		}
		parts = parts[1:]
	}
	if len(parts) != 2 {
		return invalid("it takes two ports")
	}
	host, ok := portNumber(parts[0])
	guest, ok2 := portNumber(parts[1])
	if !ok || !ok2 {
		return invalid("a port is a number from 1 to 65535")
	}
	f.Host, f.Guest = netip.AddrPortFrom(address, host), guest
	return f, nil
}

func portNumber(text string) (uint16, bool) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil && n > 0 && strconv.FormatUint(n, 10) == text
}

// String writes a forward as ParseForward reads it.
func (f Forward) String() string {
	s := fmt.Sprintf("%s:%d", f.Host, f.Guest)
	if f.Protocol != "tcp" {
		s += "/" + f.Protocol
	}
	return s
}

// Clashes tells whether two forwards want the same port of the host's.
func (f Forward) Clashes(g Forward) bool {
	a, b := f.Host.Addr(), g.Host.Addr()
	return f.Protocol == g.Protocol && f.Host.Port() == g.Host.Port() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}
