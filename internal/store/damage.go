package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"banger/internal/errs"
)

// damagedError is a database that SQLite can't make sense of.
type damagedError struct{ error }

func (e damagedError) Unwrap() error { return e.error }

// IsDamaged tells that a database can't be read because its file is not, or no longer, one.
func IsDamaged(err error) bool {
	_, ok := errors.AsType[damagedError](err)
	return ok
}

// damaged marks err if it says that the file at path is damaged.
func damaged(path string, err error) error {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch e.Code() & 0xff { // without what extends the code
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return damagedError{errs.New(errs.Internal, "the database %s is damaged", path).Because(err)}
		}
	}
	return err
}

// check reads the whole database, so that damage shows before anything relies on it.
func (s *Store) check(ctx context.Context) error {
	var found string
	if err := s.db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&found); err != nil {
		return err
	}
	if found != "ok" {
		return damagedError{errs.New(errs.Internal, "the database is damaged: SQLite finds %s", found)}
	}
	if _, err := s.List(ctx); err != nil { // pages have no checksums: a document may be damaged too
		return damagedError{err}
	}
	return nil
}

// SetAside renames the database's files, so that another can be made in their place, and
// returns the new name of the first. Nothing is deleted: a person may still get something
// out of them.
func SetAside(path string, now time.Time) (aside string, err error) {
	aside = path + ".damaged-" + now.UTC().Format("20060102T150405.000000000")
	for _, suffix := range []string{"-wal", "-shm", ""} {
		if err := os.Rename(path+suffix, aside+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("set the damaged database aside: %w", err)
		}
	}
	return aside, nil
}
