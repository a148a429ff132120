// Package store keeps VMs in SQLite. It owns the schema and the transactions and knows no
// rule of a VM's life: those are the vm package's, whose types it stores.
package store

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"banger/internal/errs"
	"banger/internal/vm"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is an open database. It implements vm.Store.
type Store struct {
	db      *sql.DB
	log     string // path of its write-ahead log
	now     func() time.Time
	fresh   bool // nobody has called Complete on the database
	reserve reserve
	holed   atomic.Bool // on the disk the log may lack what it should have
	list    cache
	news
}

// Open opens the database file at path, making it if there is none, and brings its schema
// up to date. errs.Conflict if a newer banger has changed it.
func Open(ctx context.Context, path string) (*Store, error) {
	room := reserve(path + "-reserve")
	s, err := attempt(ctx, path, room)
	if isFull(err) {
		room.spend()
		s, err = attempt(ctx, path, room)
	}
	if err == nil {
		room.lay()
	}
	return s, err
}

func attempt(ctx context.Context, path string, room reserve) (*Store, error) {
	// A commit is on the disk when it returns (synchronous=FULL with a WAL); the
	// pragmas hold for each connection.
	db, err := sql.Open("sqlite", "file:"+escape(path)+"?_txlock=immediate"+
		"&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(ON)"+
		fmt.Sprintf("&_pragma=wal_autocheckpoint(%d)", checkpointPages))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	// One writer at a time is all SQLite has, and readers are quick: a second
	// connection would only cost its page cache.
	db.SetMaxOpenConns(1)
	s := &Store{db: db, log: path + "-wal", now: time.Now, reserve: room}
	err = s.migrate(ctx)
	if err == nil {
		err = s.check(ctx)
	}
	if err != nil {
		return nil, errors.Join(damaged(path, err), db.Close())
	}
	return s, nil
}

// complete marks a database, in its application_id, that knows of all VMs there are: "bang".
const complete = 0x62616e67

// Fresh tells whether the database may lack VMs that an earlier one knew: it was made by Open,
// or by the Open of a daemon that died before it called Complete.
func (s *Store) Fresh() bool { return s.fresh }

// Complete records that the database lacks no VM.
func (s *Store) Complete(ctx context.Context) error {
	if _, err := s.db.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", complete)); err != nil {
		return fmt.Errorf("record that the database is complete: %w", err)
	}
	s.fresh = false
	return nil
}

// escape makes a file's path safe in an SQLite URI.
func escape(path string) string {
	return strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path)
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// migrate runs the migrations that the database has not seen. Its user_version is the
// number of the last one it has.
func (s *Store) migrate(ctx context.Context) error {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return err
	}
	var tables int
	if err := s.db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
		return senseless(fmt.Errorf("read the database: %w", err))
	}
	return s.tx(ctx, durable, func(tx *sql.Tx) error {
		var version, mark int
		for query, into := range map[string]*int{"PRAGMA user_version": &version, "PRAGMA application_id": &mark} {
			if err := tx.QueryRowContext(ctx, query).Scan(into); err != nil {
				return fmt.Errorf("read the database's version: %w", err)
			}
		}
		if version < 0 || version == 0 && tables > 0 {
			return damagedError{errs.New(errs.Internal, "the database has version %d and %d tables", version, tables)}
		}
		if version > len(names) {
			return errs.New(errs.Conflict, "the database has version %d and this banger knows only up to %d", version, len(names)).
				Try("use the newer banger that last ran here, or another BANGER_STATE_DIR")
		}
		s.fresh = mark != complete
		for i, name := range names[version:] {
			text, err := migrations.ReadFile(name)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, string(text)); err != nil {
				return fmt.Errorf("migrate the database by %s: %w", path.Base(name), err)
			}
			if _, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version+i+1)); err != nil {
				return fmt.Errorf("record the database's version: %w", err)
			}
		}
		return nil
	})
}

// tx does something in a transaction; on a full disk, after making room, once more.
func (s *Store) tx(ctx context.Context, commit commit, do func(*sql.Tx) error) error {
	err := s.try(ctx, commit, do)
	if isFull(err) {
		if s.makeRoom(ctx) == nil {
			err = s.try(ctx, commit, do)
		}
		s.reserve.lay()
	}
	return err
}

func (s *Store) try(ctx context.Context, commit commit, do func(*sql.Tx) error) (err error) {
	defer s.list.drop() // whatever became of it
	defer func() {
		if isFull(err) {
			s.holed.Store(true)
			err = unwritable(err)
		}
	}()
	if s.holed.Load() {
		if err := s.fold(ctx); err != nil {
			return err
		}
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	defer conn.Close()
	if err := commit.prepare(ctx, conn); err != nil {
		return err
	}
	defer commit.done(conn)
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	if err := do(tx); err != nil {
		return errors.Join(err, ignoreDone(tx.Rollback()))
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	s.tell()
	return nil
}

// ignoreDone passes over the report that a transaction whose context ended is rolled back
// already.
func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// Create implements vm.Store.
func (s *Store) Create(ctx context.Context, v vm.VM, pending ...vm.Kind) error {
	var owns []vm.Change
	for _, k := range pending {
		owns = append(owns, vm.Change{Kind: k, Status: vm.Pending})
	}
	return s.insert(ctx, v, "create", owns)
}

// notStored says why the row of a VM could not be written.
func notStored(v vm.VM, err error) error {
	if e, ok := errors.AsType[*sqlite.Error](err); ok && e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE {
		if strings.Contains(e.Error(), "vms.address") {
			return vm.ErrAddressTaken
		}
		return errs.New(errs.Conflict, "there is a VM %s already", v.Name).Try("choose another name, or: banger rm %s", v.Name)
	}
	return fmt.Errorf("store VM %s: %w", v.Name, err)
}

func (s *Store) insert(ctx context.Context, v vm.VM, cause string, owns []vm.Change) error {
	doc, err := json.Marshal(v)
	if err != nil {
		return err
	}
	// The reserve is for removing VMs, not for more of them.
	return s.try(ctx, durable, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO vms (id, name, state, doc) VALUES (?, ?, ?, ?)", v.ID, v.Name, v.State, string(doc))
		if err != nil {
			return notStored(v, err)
		}
		for _, c := range owns {
			if err := change(ctx, tx, v.ID, c); err != nil {
				return err
			}
		}
		return event(ctx, tx, s.now(), v, "", v.State, cause)
	})
}

// Restore implements vm.Store.
func (s *Store) Restore(ctx context.Context, v vm.VM, resources ...vm.Change) error {
	return s.insert(ctx, v, "its row was lost; this is from the copy in its directory", resources)
}

// Get implements vm.Store.
func (s *Store) Get(ctx context.Context, ref string) (vm.VM, error) { return get(ctx, s.db, ref) }

func get(ctx context.Context, q interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}, ref string) (vm.VM, error) {
	var doc string
	err := q.QueryRowContext(ctx, "SELECT doc FROM vms WHERE id = ?1 OR name = ?1", ref).Scan(&doc)
	if errors.Is(err, sql.ErrNoRows) {
		return vm.VM{}, errs.New(errs.NotFound, "there is no VM %q", ref)
	}
	if err != nil {
		return vm.VM{}, fmt.Errorf("read VM %q: %w", ref, err)
	}
	return decode(doc)
}

func decode(doc string) (v vm.VM, err error) {
	if err := json.Unmarshal([]byte(doc), &v); err != nil {
		return vm.VM{}, damagedError{fmt.Errorf("a VM's row is damaged: %w", err)}
	}
	return v, nil
}

// List implements vm.Store.
func (s *Store) List(ctx context.Context) ([]vm.VM, error) {
	return s.list.get(func() ([]vm.VM, error) { return s.readAll(ctx) })
}

func (s *Store) readAll(ctx context.Context) ([]vm.VM, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT doc FROM vms ORDER BY name")
	if err != nil {
		return nil, fmt.Errorf("list VMs: %w", err)
	}
	defer rows.Close()
	var vms []vm.VM
	for rows.Next() {
		var doc string
		if err := rows.Scan(&doc); err != nil {
			return nil, fmt.Errorf("list VMs: %w", err)
		}
		v, err := decode(doc)
		if err != nil {
			return nil, err
		}
		vms = append(vms, v)
	}
	return vms, rows.Err()
}

// Update implements vm.Store.
func (s *Store) Update(ctx context.Context, id, cause string, edit func(*vm.VM) error, resources ...vm.Change) (vm.VM, error) {
	return s.update(ctx, durable, id, cause, edit, resources)
}

// Intend implements vm.Store.
func (s *Store) Intend(ctx context.Context, id, cause string, edit func(*vm.VM) error, resources ...vm.Change) (vm.VM, func() error, error) {
	v, err := s.update(ctx, swift, id, cause, edit, resources)
	return v, s.sync, err
}

func (s *Store) update(ctx context.Context, commit commit, id, cause string, edit func(*vm.VM) error, resources []vm.Change) (v vm.VM, err error) {
	err = s.tx(ctx, commit, func(tx *sql.Tx) error {
		if v, err = get(ctx, tx, id); err != nil {
			return err
		}
		was := v.State
		if err := edit(&v); err != nil {
			return err
		}
		doc, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "UPDATE vms SET name = ?, state = ?, doc = ? WHERE id = ?", v.Name, v.State, string(doc), id); err != nil {
			return notStored(v, err)
		}
		for _, c := range resources {
			if err := change(ctx, tx, id, c); err != nil {
				return err
			}
		}
		if v.State == was {
			return nil
		}
		return event(ctx, tx, s.now(), v, was, v.State, cause)
	})
	return v, err
}

func change(ctx context.Context, tx *sql.Tx, id string, c vm.Change) (err error) {
	if c.Status == vm.Gone {
		_, err = tx.ExecContext(ctx, "DELETE FROM resources WHERE vm_id = ? AND kind = ?", id, c.Kind)
	} else {
		_, err = tx.ExecContext(ctx, `INSERT INTO resources (vm_id, kind, status) VALUES (?, ?, ?)
			ON CONFLICT DO UPDATE SET status = excluded.status`, id, c.Kind, c.Status)
	}
	if err != nil {
		return fmt.Errorf("store the %s of VM %s as %s: %w", c.Kind, id, c.Status, err)
	}
	return nil
}

// Delete implements vm.Store.
func (s *Store) Delete(ctx context.Context, id, cause string, gone ...vm.Kind) error {
	defer s.reserve.lay() // in the room that the VM has left
	return s.tx(ctx, swift, func(tx *sql.Tx) error {
		v, err := get(ctx, tx, id)
		if err != nil {
			return err
		}
		for _, k := range gone {
			if err := change(ctx, tx, id, vm.Change{Kind: k, Status: vm.Gone}); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM vms WHERE id = ?", id); err != nil {
			return fmt.Errorf("drop VM %s: %w", v.Name, err)
		}
		return event(ctx, tx, s.now(), v, v.State, "", cause)
	})
}

// Resources implements vm.Store.
func (s *Store) Resources(ctx context.Context, id string) ([]vm.Resource, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT kind, status = 'live' FROM resources WHERE vm_id = ? ORDER BY kind", id)
	if err != nil {
		return nil, fmt.Errorf("list the resources of VM %s: %w", id, err)
	}
	defer rows.Close()
	var all []vm.Resource
	for rows.Next() {
		var r vm.Resource
		if err := rows.Scan(&r.Kind, &r.Live); err != nil {
			return nil, fmt.Errorf("list the resources of VM %s: %w", id, err)
		}
		all = append(all, r)
	}
	return all, rows.Err()
}
