package guestd

import (
	"fmt"

	"github.com/mdlayher/vsock"

	"banger/internal/guest/proto"
	"banger/internal/guestd/knock"
)

// virtioVsock is the kind of a virtio device that is a vsock.
const virtioVsock = 19

// serveVsock takes the host's connections, each of which is a session.
func (a *Agent) serveVsock() error {
	l, err := vsock.Listen(proto.VsockPort, nil)
	if err != nil {
		return fmt.Errorf("listen on the vsock: %w", err)
	}
	defer l.Close()
	var k knock.Knocker
	k.Knock()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		k.Knock() // the daemon that heard the last one may have gone
		if from, ok := conn.RemoteAddr().(*vsock.Addr); !ok || from.ContextID != vsock.Host {
			conn.Close() // a program of the guest's own
			continue
		}
		// The end of a session is the host's going: nothing to report.
		go func() { _ = a.ServeConn(conn) }()
	}
}
