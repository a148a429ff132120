package daemon

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/config"
	"banger/internal/errs"
	"banger/internal/unixsock"
)

// endpoint is where a daemon is listened for.
type endpoint struct {
	net.Listener
	path    string
	file    fs.FileInfo // of the socket, as it was made
	systemd bool        // the socket is systemd's: it stays, and starts the next daemon
}

// openSocket takes the socket that systemd passes, or makes one. It is for this user alone, or for
// owner too.
func openSocket(path string, owner *config.Owner) (*endpoint, error) {
	e := &endpoint{path: path}
	passed, err := activation.Listeners()
	switch {
	case err != nil:
		return nil, errs.New(errs.Unavailable, "take the socket from systemd").Because(err)
	case len(passed) > 0 && passed[0] == nil: // a FIFO or a datagram socket
		return nil, errs.New(errs.Unavailable, "what systemd passes is no socket that is listened on").Try("see bangerd.socket: systemctl cat bangerd.socket")
	case len(passed) > 0:
		e.Listener, e.systemd, e.path = passed[0], true, passed[0].Addr().String()
	default:
		if e.Listener, err = listen(path, owner); err != nil {
			return nil, err
		}
	}
	if u, ok := e.Listener.(*net.UnixListener); ok {
		// Its name here may be one that only holds for a moment, so the one who serves
		// removes the file.
		u.SetUnlinkOnClose(false)
	}
	if e.file, err = os.Lstat(e.path); err != nil {
		e.Listener.Close()
		return nil, errs.New(errs.Unavailable, "find the socket %s", e.path).Because(err)
	}
	allowed := []uint32{uint32(os.Geteuid()), 0}
	if owner != nil {
		allowed = append(allowed, uint32(owner.UID))
	}
	e.Listener = peers{e.Listener, allowed}
	return e, nil
}

// remove takes the socket away, if it is still this one and ours.
func (e *endpoint) remove() {
	if !e.systemd && isAt(e.file, e.path) {
		os.Remove(e.path)
	}
}

// peers lets in connections of these users' processes only. The mode of the socket says the
// same; the kernel's word for who is there can't be changed by a chmod.
type peers struct {
	net.Listener
	allowed []uint32
}

func (p peers) Accept() (net.Conn, error) {
	for {
		conn, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peer(conn)
		if err == nil && slices.Contains(p.allowed, uid) {
			return conn, nil
		}
		conn.Close() // without a word: it is nobody whom we serve
	}
}

// peer tells whose process is at the other end.
func peer(conn net.Conn) (uid uint32, err error) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// listen makes the daemon's socket. A socket of a daemon that has died
// is replaced: the lock on the state directory says that none of ours lives, but the
// socket may have been placed elsewhere, where another's could be.
func listen(path string, owner *config.Owner) (net.Listener, error) {
	dir := filepath.Dir(path)
	mode := fs.FileMode(0o700)
	if owner != nil {
		mode = 0o755 // the owner comes through; the socket itself is theirs alone
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return nil, errs.New(errs.Unavailable, "make the socket's directory").Because(err).Try("set BANGER_SOCKET to a path you can write to")
	}
	if err := clearStale(path, owner); err != nil {
		return nil, err
	}
	var l net.Listener
	old := unix.Umask(0o177) // no moment at which others could connect
	err := unixsock.WithAddress(path, func(address string) (err error) {
		l, err = net.Listen("unix", address)
		return err
	})
	unix.Umask(old)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "listen on %s", path).Because(err).Try("set BANGER_SOCKET to another path")
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if owner == nil {
		return l, nil
	}
	if err := os.Lchown(path, owner.UID, owner.GID); err != nil {
		l.Close()
		return nil, errs.New(errs.Unavailable, "give the socket %s to %s", path, owner.Name).Because(err).Try("only root can have an owner")
	}
	return l, nil
}

// clearStale removes a socket that nobody serves. Anything else at that path stays.
func clearStale(path string, owner *config.Owner) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return errs.New(errs.Conflict, "%s is there and is not a socket", path).Try("move it away, or set BANGER_SOCKET to another path")
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; int(uid) != os.Geteuid() && (owner == nil || int(uid) != owner.UID) {
		return errs.New(errs.Conflict, "the socket %s belongs to user %d", path, uid).Try("set BANGER_SOCKET to a path of your own")
	}
	if served(path) {
		return errs.New(errs.Busy, "another daemon serves %s", path).Try("stop it, or set BANGER_SOCKET to another path")
	}
	return os.Remove(path)
}

// isAt tells whether path still leads to this very file.
func isAt(file fs.FileInfo, path string) bool {
	now, err := os.Lstat(path)
	return err == nil && os.SameFile(file, now)
}

// lookInterval is the time between two looks at the socket. Its directory may be renamed or
// its filesystem unmounted, of which no watch on the socket would tell.
const lookInterval = 2 * time.Second

// watchSocket stops the daemon when its socket is gone, with its state directory perhaps:
// nobody can reach it any more, and the next one must not find it at work on the same VMs.
func (d *Daemon) watchSocket(ctx context.Context, e *endpoint) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if !isAt(e.file, e.path) {
			d.opts.Log.Warn("the socket is gone, so this daemon ends; VMs run on", "socket", e.path)
			d.stop()
			return
		}
	}
}

// silentLimit bounds how long someone who listens on a socket may take to answer.
const silentLimit = time.Second

// served tells whether the socket at path is someone's who lives. A daemon that was killed may
// still take connections, on which it hangs up.
func served(path string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), silentLimit)
	defer cancel()
	client := api.New(path)
	defer client.Close()
	err := client.Ping(ctx)
	return !errors.Is(err, api.ErrNoDaemon) && !errors.Is(err, api.ErrGone)
}
