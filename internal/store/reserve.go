package store

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// reserve is room on the disk that is given up when the disk is full, so that VMs can
// still be removed. It is a file beside the database, named here.
type reserve string

// The size of a reserve in bytes: enough for a checkpoint, which comes every
// checkpointPages, and its log. A nearly full disk has less to spare.
const (
	mostReserve     = 1 << 20
	leastReserve    = 16 << 10
	checkpointPages = 100
)

// lay takes the room, or as much of it as there is, if that is not done yet.
func (r reserve) lay() {
	f, err := os.OpenFile(string(r), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return // it is there, or there is no room even for its name
	}
	defer f.Close()
	for size := int64(mostReserve); size >= leastReserve; size /= 2 {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err == nil {
			return
		}
	}
	os.Remove(string(r))
}

// spend gives the room up.
func (r reserve) spend() { os.Remove(string(r)) }

// isFull tells that SQLite found no room. Where it shares memory among processes, in a
// file, it only speaks of an error of input and output.
func isFull(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return false
	}
	code := e.Code() & 0xff // without what extends the code
	return code == sqlite3.SQLITE_FULL || code == sqlite3.SQLITE_IOERR
}

// makeRoom does what can be done on a full disk: beside the reserve, the log of what is in
// the database by now is begun anew, in the room that it has.
func (s *Store) makeRoom(ctx context.Context) error {
	s.reserve.spend()
	return s.fold(ctx)
}
