package registry

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"banger/internal/errs"
)

// guard lets nothing through in plain text but to this very host, and to this host only what is
// asked of a registry here: one elsewhere must not send banger to what listens for local users.
type guard struct {
	http.RoundTripper
	here bool // the registry is on this host
}

func (g guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if !g.here && isLoopback(r.URL.Host) {
		return nil, errs.New(errs.Invalid, "the registry sends on to this host itself, to %s, which is refused", r.URL.Host).
			Try("if that is meant, name this host in the reference")
	}
	if r.URL.Scheme != "https" && !isLoopback(r.URL.Host) {
		return nil, errs.New(errs.Invalid, "%s is only to be had in plain text, which anyone on the way can change", r.URL.Host).
			Try("have the registry speak https")
	}
	return g.RoundTripper.RoundTrip(r)
}

// isLoopback tells whether an address, with or without a port, is this host's own.
func isLoopback(address string) bool {
	host := address
	if h, _, err := net.SplitHostPort(address); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	ip, _ := netip.ParseAddr(host) // with its zone, if it has one; no address is nowhere
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || isThisHost(ip.Unmap())
}

// isThisHost tells whether what connects to ip stays on this host.
func isThisHost(ip netip.Addr) bool {
	return ip.WithZone("").IsLoopback() || ip.WithZone("").IsUnspecified()
}

// dialer connects to a registry; to one elsewhere, also by no name that means this host. A proxy
// here is reached all the same.
func dialer(limit time.Duration, here bool) func(ctx context.Context, network, address string) (net.Conn, error) {
	free := net.Dialer{Timeout: limit}
	outward := net.Dialer{Timeout: limit, Control: refuseThisHost}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if here || isLoopback(address) { // guard lets no request through to such an address: it is the proxy's
			return free.DialContext(ctx, network, address)
		}
		return outward.DialContext(ctx, network, address)
	}
}

// refuseThisHost is given the address that a name has been resolved to.
func refuseThisHost(_, address string, _ syscall.RawConn) error {
	if isLoopback(address) {
		return errs.New(errs.Invalid, "its name means this host itself, %s, which is refused", address).
			Try("if that is meant, use localhost in the reference")
	}
	return nil
}
