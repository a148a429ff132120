package guestd

import (
	"fmt"
	"net"
	"strconv"
	"sync"

	"golang.org/x/crypto/ssh"

	"banger/internal/guest/proto"
)

// direct connects a channel to an address in the guest.
func (c *sshConn) direct(ch ssh.NewChannel, network, address string) {
	conn, err := dialGuest(proto.Dial{Network: network, Address: address})
	if err != nil {
		ch.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	stream, requests, err := ch.Accept()
	if err != nil {
		conn.Close()
		return
	}
	go ssh.DiscardRequests(requests)
	relay(stream, conn)
}

// forwards are the ports that a client listens on in the guest ("ssh -R").
type forwards struct {
	mu        sync.Mutex
	closed    bool
	listeners map[string]net.Listener // by the address that the client named
}

func (f *forwards) closeListeners() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, l := range f.listeners {
		l.Close()
	}
}

// forwardRequest is the payload of tcpip-forward and its cancellation.
type forwardRequest struct {
	Host string
	Port uint32
}

func (r forwardRequest) address() string {
	host := r.Host
	if host == "localhost" || host == "" {
		host = "127.0.0.1" // to no one but the guest, as sshd does by default
	}
	return net.JoinHostPort(host, fmt.Sprint(r.Port))
}

func (c *sshConn) globalRequests(requests <-chan *ssh.Request) {
	for req := range requests {
		var r forwardRequest
		switch req.Type {
		case "tcpip-forward":
			if ssh.Unmarshal(req.Payload, &r) != nil {
				req.Reply(false, nil)
				continue
			}
			port, err := c.listen(r)
			req.Reply(err == nil, ssh.Marshal(struct{ Port uint32 }{port}))
		case "cancel-tcpip-forward":
			req.Reply(ssh.Unmarshal(req.Payload, &r) == nil && c.cancel(r), nil)
		case "keepalive@openssh.com":
			req.Reply(true, nil)
		default:
			req.Reply(false, nil)
		}
	}
}

func (c *sshConn) listen(r forwardRequest) (port uint32, err error) {
	l, err := net.Listen("tcp", r.address())
	if err != nil {
		return 0, err
	}
	_, portText, _ := net.SplitHostPort(l.Addr().String())
	n, _ := strconv.ParseUint(portText, 10, 16) // a bound TCP port always parses
	r.Port = uint32(n)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		l.Close()
		return 0, net.ErrClosed
	}
	c.listeners[r.address()] = l
	go c.accept(l, r)
	return r.Port, nil
}

func (c *sshConn) cancel(r forwardRequest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.listeners[r.address()]
	if ok {
		delete(c.listeners, r.address())
		l.Close()
	}
	return ok
}

func (c *sshConn) accept(l net.Listener, r forwardRequest) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go c.forward(conn.(*net.TCPConn), r)
	}
}

func (c *sshConn) forward(conn *net.TCPConn, r forwardRequest) {
	from := conn.RemoteAddr().(*net.TCPAddr)
	stream, requests, err := c.conn.OpenChannel("forwarded-tcpip", ssh.Marshal(struct {
		Host       string
		Port       uint32
		Originator string
		OrigPort   uint32
	}{r.Host, r.Port, from.IP.String(), uint32(from.Port)}))
	if err != nil {
		conn.Close()
		return
	}
	go ssh.DiscardRequests(requests)
	relay(stream, conn)
}
