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
	// dyingLimit bounds how long the lock of another daemon is waited for, which may have been
	// killed: the kernel lets go of its files in its own order, and a process that it was
	// just starting has them open until that runs.
	dyingLimit = 500 * time.Millisecond

	// endingLimit is that for a daemon that says it is ending.
	endingLimit = drainLimit + 5*time.Second

	// lockInterval is the time between two tries for it. A blocking one could not be given up.
	lockInterval = 10 * time.Millisecond
)

// ending is in the lock file while its holder takes no more clients and is about to end.
const ending = "ending\n"

// lockState makes sure that no other daemon works on the state directory. The kernel gives
// the lock back when the process ends, however it ends.
func lockState(ctx context.Context, state string) (_ *os.File, err error) {
	f, err := os.OpenFile(filepath.Join(state, "bangerd.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "use the state directory %s", state).Because(err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for begin := time.Now(); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, f.Truncate(0)
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		said := make([]byte, len(ending))
		n, _ := f.ReadAt(said, 0)
		if waited := time.Since(begin); waited > endingLimit || waited > dyingLimit && string(said[:n]) != ending {
			return nil, errs.New(errs.Busy, "another bangerd works on %s", state).Try("banger daemon status tells of it")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
