package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

const (
	// udpSize is the longest UDP message in bytes that is sent or announced: one that
	// crosses every network unfragmented (DNS flag day 2020).
	udpSize = 1232

	// maxConns is how many TCP connections a listener has open at a time.
	maxConns = 128

	// idleLimit is how long a TCP connection may say nothing.
	idleLimit = 3 * time.Second

	// socketBuffer holds, in bytes, what comes while the daemon is kept from running: 100 ms
	// at 10,000 queries/s, of which each takes about 800 bytes in the kernel.
	socketBuffer = 1 << 20
)

// Resolvers are the name servers that guests' questions are forwarded to, in order.
type Resolvers interface {
	Servers() []netip.AddrPort
}

// Server answers from one snapshot of records on any number of listeners.
type Server struct {
	zone    atomic.Pointer[zone]
	forward *forwarder

	mu     sync.Mutex
	own    []netip.AddrPort // that a listener listens on
	serial uint32
}

// NewServer returns a server without records that forwards to resolvers.
func NewServer(resolvers Resolvers) *Server {
	s := &Server{serial: uint32(time.Now().Unix())}
	s.forward = newForwarder(func() []netip.AddrPort { return s.notOurs(resolvers.Servers()) })
	s.Set(netip.Prefix{}, nil)
	return s
}

// Set replaces all records. The server is authoritative for the reverse of subnet, if it is
// valid.
func (s *Server) Set(subnet netip.Prefix, records []Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	s.zone.Store(newZone(s.serial, subnet, records))
}

// Records returns the records that are served now, by name. They are not to be changed.
func (s *Server) Records() []Record { return s.zone.Load().records }

// Upstreams returns the name servers that questions are forwarded to now.
func (s *Server) Upstreams() []netip.AddrPort { return s.forward.servers() }

// notOurs leaves out the servers that are this one.
func (s *Server) notOurs(all []netip.AddrPort) []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(all), func(a netip.AddrPort) bool {
		// Linux takes the unspecified address for loopback.
		return slices.ContainsFunc(s.own, func(o netip.AddrPort) bool {
			return a == o || a.Port() == o.Port() && a.Addr().IsUnspecified() && o.Addr().IsLoopback()
		})
	})
}

// isOwn tells whether a listener listens on the address.
func (s *Server) isOwn(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.own, func(o netip.AddrPort) bool { return o.Addr() == a })
}

// Listener is an address that the server answers on, by UDP and by TCP.
type Listener struct {
	server *Server
	guests bool
	addr   netip.AddrPort
	udp    *net.UDPConn
	tcp    *dns.Server
	served sync.WaitGroup
	once   sync.Once
	err    error
}

// ServeHost answers the host's questions on addr: those about our zones. The rest is refused.
func (s *Server) ServeHost(addr netip.AddrPort) (*Listener, error) { return s.listen(addr, false) }

// ServeGuests answers guests' questions on addr, and forwards those that are not about our
// zones.
func (s *Server) ServeGuests(addr netip.AddrPort) (*Listener, error) { return s.listen(addr, true) }

func (s *Server) listen(addr netip.AddrPort, guests bool) (*Listener, error) {
	packets, stream, err := sockets(addr)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "answer DNS on %s", addr).Because(err).
			Try("see what else listens there: ss -lnup 'sport = :%d'", addr.Port())
	}
	l := &Listener{server: s, guests: guests, addr: packets.LocalAddr().(*net.UDPAddr).AddrPort()}
	l.udp = packets
	l.addr = netip.AddrPortFrom(l.addr.Addr().Unmap(), l.addr.Port())
	s.mu.Lock()
	s.own = append(s.own, l.addr)
	s.mu.Unlock()
	l.served.Go(newUDPServer(l, packets).serve)
	started, failed := make(chan struct{}), make(chan error, 1)
	l.tcp = &dns.Server{Listener: netutil.LimitListener(stream, maxConns), Handler: l, ReadTimeout: idleLimit,
		WriteTimeout: idleLimit, IdleTimeout: func() time.Duration { return idleLimit },
		NotifyStartedFunc: func() { close(started) }}
	l.served.Go(func() { failed <- l.tcp.ActivateAndServe() })
	select {
	case <-started:
		return l, nil
	case err := <-failed:
		return nil, errors.Join(err, l.Close())
	}
}

// sockets opens a UDP and a TCP socket on the same port.
func sockets(addr netip.AddrPort) (*net.UDPConn, net.Listener, error) {
	const tries = 8 // with port 0 the one that UDP was given may be taken for TCP
	var err error
	for range tries {
		var packets *net.UDPConn
		if packets, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr)); err != nil {
			return nil, nil, err
		}
		var stream net.Listener
		if stream, err = net.Listen("tcp4", packets.LocalAddr().String()); err == nil {
			return packets, stream, enlarge(packets)
		}
		packets.Close()
		if addr.Port() != 0 {
			break
		}
	}
	return nil, nil, err
}

// enlarge gives a socket a long queue: beyond net.core.rmem_max where we may.
func enlarge(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer) // what is allowed is given
		}
	})
}

// Addr is where the listener listens.
func (l *Listener) Addr() netip.AddrPort { return l.addr }

// Close ends the listener. Answers under way are given up.
func (l *Listener) Close() error {
	l.once.Do(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel() // do not wait for connections
		l.err = l.udp.Close()
		if err := l.tcp.ShutdownContext(now); err != nil && !errors.Is(err, context.Canceled) {
			l.err = errors.Join(l.err, fmt.Errorf("stop answering on %s: %w", l.addr, err))
		}
		l.served.Wait()
		s := l.server
		s.mu.Lock()
		defer s.mu.Unlock()
		if i := slices.Index(s.own, l.addr); i >= 0 {
			s.own = slices.Delete(s.own, i, i+1)
		}
	})
	return l.err
}
