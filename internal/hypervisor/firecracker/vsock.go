package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/errs"
	"banger/internal/guest/proto"
	"banger/internal/unixsock"
)

// socketDir holds a machine's sockets, in its directory. Firecracker makes the first two there, and
// can make nothing there any more once its guest runs (see seal).
const (
	socketDir   = "run"
	apiSocket   = socketDir + "/api.sock"
	vsockSocket = socketDir + "/vsock.sock" // of the guest's vsock: connections to the guest begin here
)

// knockSocket is where Firecracker takes what the guest connects to on its host.
func knockSocket() string { return fmt.Sprintf("%s_%d", vsockSocket, proto.VsockPort) }

// dial connects to a machine's socket.
func dial(ctx context.Context, dir, name string) (net.Conn, error) {
	var conn net.Conn
	err := unixsock.WithAddress(filepath.Join(dir, name), func(address string) (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", address)
		return err
	})
	return conn, err
}

// knocker hears when a guest's agent is there. An agent connects to its host once it takes
// connections itself, and again when it takes new ones after all had been cut; that is all that it
// says this way, and it keeps the connection.
type knocker struct {
	listener *net.UnixListener
	heard    chan struct{} // holds one knock that nobody has waited for yet
}

// openKnocker listens, in the place of a daemon that has gone. Whoever gets as far as the socket
// may connect: its machine's process, and who may enter the machine's directory.
func openKnocker(dir string) (*knocker, error) {
	path := filepath.Join(dir, knockSocket())
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	k := &knocker{heard: make(chan struct{}, 1)}
	err := unixsock.WithAddress(path, func(address string) (err error) {
		if k.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"}); err == nil {
			k.listener.SetUnlinkOnClose(false) // the address may mean another file by then
		}
		return err
	})
	if err == nil {
		if err = os.Chmod(path, 0o666); err != nil {
			k.listener.Close()
		}
	}
	if err != nil {
		return nil, err
	}
	go k.listen()
	return k, nil
}

func (k *knocker) listen() {
	var held net.Conn
	defer func() {
		if held != nil {
			held.Close()
		}
	}()
	for {
		c, err := k.listener.Accept()
		if err != nil {
			return // closed
		}
		if held != nil {
			held.Close()
		}
		held = c
		select {
		case k.heard <- struct{}{}:
		default:
		}
	}
}

// forget has the next one wait for a new knock.
func (k *knocker) forget() {
	select {
	case <-k.heard:
	default:
	}
}

func (k *knocker) close() { k.listener.Close() }

// maxHello bounds Firecracker's answer to a CONNECT, "OK 1073741824\n".
const maxHello = 32

// connectGuest connects to the agent's port. It fails if nobody listens there: Firecracker
// hangs up then, at once if the guest's kernel says so, or after two seconds.
func connectGuest(ctx context.Context, dir string) (_ net.Conn, err error) {
	conn, err := dial(ctx, dir, vsockSocket)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", proto.VsockPort); err != nil {
		return nil, err
	}
	hello, err := readHello(conn)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("the guest takes no connection: %w", err)
	}
	if !strings.HasPrefix(hello, "OK ") {
		return nil, errs.New(errs.Internal, "Firecracker answers a connection to the guest with %q", printable(hello))
	}
	if !stop() { // too late to be of any use
		return nil, ctx.Err()
	}
	return conn, nil
}

// readHello reads a line and not a byte more: what follows is the guest's.
func readHello(conn net.Conn) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < maxHello; {
		if _, err := conn.Read(b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
	return string(line), nil
}
