package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// listeners forward ports of the host's to guests on the bridge: each listens in this
// process and dials the guest anew for each client.
type listeners struct {
	byVM map[string]map[Forward]io.Closer
}

// set has exactly these forwards be open for the guest at this address. If one can't be,
// those that were stay as they were.
func (l *listeners) set(vm string, guest netip.Addr, want []Forward) error {
	open := l.byVM[vm]
	var fresh []Forward
	for _, f := range want {
		if open[f] != nil {
			continue
		}
		closer, err := listenFor(f, guest)
		if err != nil {
			for _, f := range fresh {
				err = errors.Join(err, open[f].Close())
				delete(open, f)
			}
			return err
		}
		if open == nil {
			open = map[Forward]io.Closer{}
		}
		open[f] = closer
		fresh = append(fresh, f)
	}
	wanted := map[Forward]bool{}
	for _, f := range want {
		wanted[f] = true
	}
	var err error
	for f, closer := range open {
		if !wanted[f] {
			err = errors.Join(err, closer.Close())
			delete(open, f)
		}
	}
	if l.byVM == nil {
		l.byVM = map[string]map[Forward]io.Closer{}
	}
	if l.byVM[vm] = open; len(open) == 0 {
		delete(l.byVM, vm)
	}
	return err
}

func (l *listeners) close() (err error) {
	for vm := range l.byVM {
		err = errors.Join(err, l.set(vm, netip.Addr{}, nil))
	}
	return err
}

// ListenError says why a port can't be forwarded from.
func ListenError(f Forward, err error) error {
	port := fmt.Sprintf("%s port %s", f.Protocol, f.Host)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return errs.New(errs.Conflict, "%s of this host is taken", port).Try("choose another, or see who has it: ss -lnp")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return errs.New(errs.Invalid, "%s of this host is for privileged programs only", port).Try("choose one from 1024 on, or run bangerd as root")
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return errs.New(errs.Invalid, "this host has no address %s", f.Host.Addr())
	}
	return errs.New(errs.Unavailable, "listen on %s of this host", port).Because(err)
}

func listenFor(f Forward, guest netip.Addr) (io.Closer, error) {
	target := netip.AddrPortFrom(guest, f.Guest)
	ctx, cancel := context.WithCancel(context.Background())
	r := &relay{target: target.String(), ctx: ctx, cancel: cancel}
	if f.Protocol == "udp" {
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(f.Host))
		if err != nil {
			cancel()
			return nil, ListenError(f, err)
		}
		r.listener = conn
		r.running.Go(func() { r.serveUDP(conn) })
		return r, nil
	}
	ln, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(f.Host))
	if err != nil {
		cancel()
		return nil, ListenError(f, err)
	}
	r.listener = ln
	r.running.Go(func() { r.serveTCP(ln) })
	return r, nil
}

// relay is one forwarded port. Its end is that of all its connections.
type relay struct {
	target   string
	listener io.Closer
	ctx      context.Context
	cancel   func()
	running  sync.WaitGroup
}

func (r *relay) Close() error {
	r.cancel()
	err := r.listener.Close()
	r.running.Wait()
	return err
}

// dialLimit bounds how long a guest may take to accept a connection.
const dialLimit = 10 * time.Second

func (r *relay) serveTCP(ln *net.TCPListener) {
	for {
		client, err := ln.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors left, say
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-r.ctx.Done():
				return
			}
		}
		r.running.Go(func() { r.join(client) })
	}
}

func (r *relay) join(client *net.TCPConn) {
	defer client.Close()
	ctx, cancel := context.WithTimeout(r.ctx, dialLimit)
	conn, err := new(net.Dialer).DialContext(ctx, "tcp4", r.target)
	cancel()
	if err != nil {
		_ = client.SetLinger(0) // refused there is refused here
		return
	}
	guest := conn.(*net.TCPConn)
	defer guest.Close()
	defer context.AfterFunc(r.ctx, func() {
		client.Close()
		guest.Close()
	})()
	var back sync.WaitGroup
	back.Go(func() { oneWay(client, guest) })
	oneWay(guest, client)
	back.Wait()
}

// oneWay copies in the kernel until src ends, and passes that end on. Where a direction
// breaks, so does the other.
func oneWay(dst, src *net.TCPConn) {
	_, err := io.Copy(dst, src)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		dst.Close()
		src.Close()
	}
}

const (
	// udpIdle is how long a client may be silent before its place is given to another.
	udpIdle    = 2 * time.Minute
	udpClients = 1024
)

// serveUDP gives each client a socket of its own towards the guest, so that answers find
// their way back.
func (r *relay) serveUDP(conn *net.UDPConn) {
	var mu sync.Mutex
	clients := map[netip.AddrPort]*net.UDPConn{}
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range clients {
			c.Close()
		}
	}()
	packet := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(packet)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an answer that could not be delivered
		}
		mu.Lock()
		guest := clients[from]
		if guest == nil && len(clients) < udpClients {
			if c, err := net.Dial("udp4", r.target); err == nil {
				guest = c.(*net.UDPConn)
				clients[from] = guest
				r.running.Go(func() {
					answer(conn, guest, from)
					mu.Lock()
					defer mu.Unlock()
					delete(clients, from)
					guest.Close()
				})
			}
		}
		mu.Unlock()
		if guest != nil {
			_ = guest.SetReadDeadline(time.Now().Add(udpIdle))
			_, _ = guest.Write(packet[:n]) // lost, as any datagram may be
		}
	}
}

// answer passes the guest's datagrams on until it or its client has been silent for long.
func answer(conn, guest *net.UDPConn, client netip.AddrPort) {
	packet := make([]byte, 64<<10)
	for {
		n, err := guest.Read(packet)
		if errors.Is(err, unix.ECONNREFUSED) {
			continue // nobody listens yet
		}
		if err != nil {
			return
		}
		_ = guest.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = conn.WriteToUDPAddrPort(packet[:n], client)
	}
}
