package daemon

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/errs"
	"banger/internal/unixsock"
)

// listen makes the daemon's socket, for its user alone. A socket of a daemon that has died
// is replaced: the lock on the state directory says that none of ours lives, but the
// socket may have been placed elsewhere, where another's could be.
func listen(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.New(errs.Unavailable, "make the socket's directory").Because(err).Try("set BANGER_SOCKET to a path you can write to")
	}
	if err := clearStale(path); err != nil {
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
	// Its name here may be one that only holds for a moment, so the one who serves
	// removes the file.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l, nil
}

// clearStale removes a socket that nobody serves. Anything else at that path stays.
func clearStale(path string) error {
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
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return errs.New(errs.Conflict, "the socket %s belongs to user %d", path, owner).Try("set BANGER_SOCKET to a path of your own")
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
func (d *Daemon) watchSocket(ctx context.Context, own fs.FileInfo) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if !isAt(own, d.opts.Config.Socket) {
			d.opts.Log.Warn("the socket is gone, so this daemon ends; VMs run on", "socket", d.opts.Config.Socket)
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
