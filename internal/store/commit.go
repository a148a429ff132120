package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// commit is what is true of a transaction when it has been committed.
type commit int

const (
	// durable: it is on the disk.
	durable commit = iota

	// swift: whoever opens the database in this boot of the host finds it, and it is on the
	// disk no later than the next durable one. It saves a flush, of 1 to 4 ms.
	swift
)

// prepare makes a connection commit that way.
func (c commit) prepare(ctx context.Context, conn *sql.Conn) error {
	if c == durable {
		return nil
	}
	if _, err := conn.ExecContext(ctx, "PRAGMA synchronous = NORMAL"); err != nil {
		return fmt.Errorf("commit without a flush: %w", err)
	}
	return nil
}

// done has the next transaction be a durable one. A connection that can't promise that is given
// up for another.
func (c commit) done(conn *sql.Conn) {
	if c == durable {
		return
	}
	if _, err := conn.ExecContext(context.Background(), "PRAGMA synchronous = FULL"); err != nil {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	}
}

// sync makes all that was committed durable: by a flush of the log, or else by having it in the
// database's own file.
func (s *Store) sync() error {
	err := flush(s.log)
	if err == nil && !s.holed.Load() { // else another's has failed, which the kernel tells once
		return nil
	}
	s.holed.Store(true)
	folded := s.fold(context.Background())
	if folded == nil {
		return nil
	}
	return unwritable(fmt.Errorf("flush the database's log: %w", errors.Join(err, folded)))
}

func flush(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fdatasync(int(f.Fd()))
}

// fold writes what is in the log to the database's file and has the log begin anew. After a
// flush that failed the kernel takes what was lost for written: what would be appended to
// such a log is not durable, whatever the next flush says.
func (s *Store) fold(ctx context.Context) error {
	_, err := s.db.ExecContext(ctx, "PRAGMA wal_checkpoint(RESTART)")
	if err == nil {
		s.holed.Store(false)
	}
	return err
}

// unwritable puts a disk that fails or is full into words.
func unwritable(err error) error {
	if err == nil {
		return nil
	}
	return errs.New(errs.Unavailable, "the database can't be written to").Because(err).
		Try("look at the filesystem that it is on, by df -h and dmesg, and try again")
}
