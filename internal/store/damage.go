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
	"banger/internal/vm"
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

// senseless marks err if it says that SQL which always works made no sense to SQLite: a
// schema, or what tells of the file's format, is not what it was.
func senseless(err error) error {
	if e, ok := errors.AsType[*sqlite.Error](err); ok && e.Code()&0xff == sqlite3.SQLITE_ERROR {
		return damagedError{err}
	}
	return err
}

// check reads the whole database, so that damage shows before anything relies on it.
func (s *Store) check(ctx context.Context) error {
	var found string // by SQLite, or "ok"
	if err := s.db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&found); err != nil {
		return senseless(err)
	}
	if found != "ok" {
		return damagedError{errs.New(errs.Internal, "the database is damaged: SQLite finds %s", found)}
	}
	return senseless(s.checkRows(ctx))
}

// checkRows compares each VM with what is kept of it for SQL: pages have no checksums, and
// a bit of a document may have turned.
func (s *Store) checkRows(ctx context.Context) error {
	rows, err := s.db.QueryContext(ctx, "SELECT id, name, state, doc FROM vms")
	if err != nil {
		return fmt.Errorf("read all VMs: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, name, doc string
		var state vm.State
		if err := rows.Scan(&id, &name, &state, &doc); err != nil {
			return fmt.Errorf("read all VMs: %w", err)
		}
		v, err := decode(doc)
		if err != nil {
			return err
		}
		if v.ID != id || v.Name != name || v.State != state || !state.Valid() {
			return damagedError{fmt.Errorf("the row of VM %q, %q, %q tells of VM %q, %q, %q", id, name, state, v.ID, v.Name, v.State)}
		}
	}
	return rows.Err()
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
