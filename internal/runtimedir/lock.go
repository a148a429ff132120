package runtimedir

import (
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// lock keeps other builds and installations out of dir, which it makes. The kernel gives
// the lock back when the process ends, however it ends.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, errs.New(errs.Unavailable, "can't make the runtime bundle").Because(err).Try("name a directory you may write to in $%s", EnvDir)
	}
	busy := errs.New(errs.Busy, "the runtime bundle in %s is being changed by another", dir).Try("wait for that to end")
	d, err := os.Open(dir)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "can't open the runtime bundle").Because(err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		return nil, busy.Because(err)
	}
	// An installation puts another directory in this one's place.
	locked, err := d.Stat()
	now, lerr := os.Stat(dir)
	if err != nil || lerr != nil || !os.SameFile(locked, now) {
		d.Close()
		return nil, busy
	}
	return func() { d.Close() }, nil
}
