package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/errs"
	"banger/internal/vm"
)

// quickDir is a directory where a flush costs nothing, if the host has such a place.
func quickDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "banger-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// filled returns the bytes of a closed database with VMs in it.
func filled(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(quickDir(t), "banger.db")
	s := open(t, path)
	for i := range 20 {
		v := vm.VM{ID: fmt.Sprintf("%012x", i), Name: fmt.Sprintf("vm-%d", i), State: vm.Creating, HostKey: strings.Repeat("k", 400)}
		if err := s.Create(t.Context(), v, vm.KindDirectory, vm.KindDisk); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Update(t.Context(), v.ID, "created", func(x *vm.VM) error { return x.To(vm.Stopped, "") }); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// use opens a database of these bytes and does everything to it that a daemon does. It returns
// the error that opening it gave.
func use(t *testing.T, dir string, doc []byte) error {
	t.Helper()
	path := filepath.Join(dir, "banger.db")
	for _, suffix := range []string{"-wal", "-shm"} {
		os.Remove(path + suffix)
	}
	if err := os.WriteFile(path, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), path)
	if err != nil {
		return err
	}
	defer s.Close()
	vms, err := s.List(t.Context())
	if err != nil {
		t.Errorf("it was opened, and then: %v", err)
	}
	for _, v := range vms {
		if !v.State.Valid() || vm.CheckName(v.Name) != nil {
			t.Errorf("it gave VM %q in state %q", v.Name, v.State)
		}
	}
	// What only events have in them is allowed to fail, but never to end the daemon.
	_, _ = s.Events(t.Context(), 0, 1000)
	_ = s.Create(t.Context(), vm.VM{ID: "ffffffffffff", Name: "new", State: vm.Creating}, vm.KindDisk)
	return nil
}

// told says whether err is one of the answers to a database that is not what it was: it is
// damaged, so that it is set aside. Only where the number of its version has turned into
// another does nobody know better than to refuse it: as made by a newer banger, or by an older
// one, whose schema can't be migrated.
func told(err error) bool {
	return err == nil || IsDamaged(err) || errs.KindOf(err) == errs.Conflict && strings.Contains(err.Error(), "has version") ||
		strings.Contains(err.Error(), "migrate the database by")
}

func TestRandomBytesAreDamage(t *testing.T) {
	dir, rng := quickDir(t), rand.New(rand.NewPCG(1, 0))
	for _, size := range []int{2, 15, 16, 99, 100, 511, 512, 513, 4095, 4096, 4097, 40960, 1 << 20} {
		doc := make([]byte, size)
		for i := range doc {
			doc[i] = byte(rng.Uint32())
		}
		if err := use(t, dir, doc); !IsDamaged(err) || !strings.Contains(err.Error(), "banger.db is damaged") {
			t.Errorf("%d random bytes: %v", size, err)
		}
		copy(doc, "SQLite format 3\x00")
		if err := use(t, dir, doc); size >= 512 && !IsDamaged(err) {
			t.Errorf("%d random bytes behind a header: %v", size, err)
		}
	}
	if err := use(t, dir, make([]byte, 8192)); !IsDamaged(err) {
		t.Errorf("zeros: %v", err)
	}
}

func TestTruncatedDatabases(t *testing.T) {
	doc, dir := filled(t), quickDir(t)
	for n := 2; n < len(doc); n += 509 { // of one byte SQLite makes a new database
		if err := use(t, dir, doc[:n]); !IsDamaged(err) {
			t.Errorf("the first %d of %d bytes: %v", n, len(doc), err)
		}
	}
}

func TestFlippedBits(t *testing.T) {
	doc, dir, rng := filled(t), quickDir(t), rand.New(rand.NewPCG(2, 0))
	opened := 0
	flip := func(bit int) {
		bad := bytes.Clone(doc)
		bad[bit/8] ^= 1 << (bit % 8)
		err := use(t, dir, bad)
		if err == nil {
			opened++
		}
		if !told(err) {
			t.Errorf("bit %d of byte %d (%q) flipped: %v", bit%8, bit/8, doc[max(0, bit/8-8):bit/8+8], err)
		}
	}
	for bit := range 100 * 8 { // the header
		flip(bit)
	}
	for range 1500 {
		flip(rng.IntN(len(doc) * 8))
	}
	for range 500 { // the first page has the schema
		flip(rng.IntN(4096 * 8))
	}
	t.Logf("%d of 2,800 were opened all the same", opened)
}

// Whoever gives up waiting has not found the database damaged.
func TestAnEndedContextIsNoDamage(t *testing.T) {
	path := filepath.Join(quickDir(t), "banger.db")
	if err := os.WriteFile(path, filled(t), 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range 200 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n)*20*time.Microsecond)
		s, err := Open(ctx, path)
		if err == nil {
			err = s.Close()
		}
		if IsDamaged(err) {
			t.Errorf("given up after %d times 20 µs: %v", n, err)
		}
		cancel()
	}
}

func TestSetAside(t *testing.T) {
	path := filepath.Join(quickDir(t), "banger.db")
	if err := os.WriteFile(path, []byte("garbage that someone may want"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+"-wal", []byte("and its log"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path); !IsDamaged(err) {
		t.Fatalf("garbage: %v", err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	aside, err := SetAside(path, now)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(aside); err != nil || string(got) != "garbage that someone may want" {
		t.Errorf("kept is %q, %v", got, err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still in its place: %v", err)
	}
	if s := open(t, path); !s.Fresh() {
		t.Error("what is made in its place does not say that it is new")
	}
	if _, err := SetAside(filepath.Join(quickDir(t), "none.db"), now); err != nil {
		t.Errorf("nothing to set aside: %v", err)
	}
}
