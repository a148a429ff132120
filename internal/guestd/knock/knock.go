// Package knock owns how a guest's host is told that connections are taken on the guest's vsock.
// It knows nothing of what is said on them.
package knock

import (
	"sync/atomic"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"banger/internal/guest/proto"
)

// Knocker tells the host by a connection of its own that it keeps. When a machine is saved, or
// goes on from one that was, all connections are cut by the guest's kernel; that it was this one's
// turn means that new ones last, and it knocks again.
type Knocker struct{ knocking atomic.Bool }

// Knock sees to it that the host knows, if it listens. Where nobody hears it, the next daemon
// tries by itself.
func (k *Knocker) Knock() {
	if !k.knocking.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer k.knocking.Store(false)
		for hold() == unix.ECONNRESET { // a daemon that goes just hangs up
		}
	}()
}

// hold knocks and returns why that connection has ended, 0 if there was none. Reading tells only
// that it has, for a socket that was reset is not connected any more.
func hold() unix.Errno {
	conn, err := vsock.Dial(vsock.Host, proto.VsockPort, nil)
	if err != nil {
		return 0
	}
	defer conn.Close()
	_, _ = conn.Read(make([]byte, 1)) // nothing is ever said
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	why := 0
	_ = raw.Control(func(fd uintptr) { why, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) })
	return unix.Errno(why)
}
