package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

const (
	// dyingLimit bounds how long the lock of a daemon that does not serve is waited for: the
	// kernel lets go of the files of one that was killed in its own order, and its socket may
	// be gone before its lock is.
	dyingLimit = 500 * time.Millisecond

	// lockInterval is the time between two tries for it. A blocking one could not be given up.
	lockInterval = 10 * time.Millisecond
)

// lockState makes sure that no other daemon works on the state directory. The kernel gives
// the lock back when the process ends, however it ends.
func lockState(ctx context.Context, state, socket string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(state, "bangerd.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "use the state directory %s", state).Because(err)
	}
	ctx, cancel := context.WithTimeout(ctx, dyingLimit)
	defer cancel()
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if !served(socket) {
			select {
			case <-tick.C:
				continue
			case <-ctx.Done():
			}
		}
		f.Close()
		return nil, errs.New(errs.Busy, "another bangerd works on %s", state).Try("banger daemon status tells of it")
	}
}
