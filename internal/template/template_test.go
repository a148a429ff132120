package template

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/disk"
	"banger/internal/errs"
)

// commit puts a template with some content on the shelf.
func commit(t *testing.T, s *Shelf, name, key string) Template {
	t.Helper()
	base := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(base, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := s.Begin(name)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Discard()
	if err := st.Memory.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	for at, what := range map[int64]string{0: "begin", 32 << 20: "middle", 64<<20 - 8: "the end."} {
		if _, err := st.Memory.WriteAt([]byte(what), at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := st.State.WriteString("state"); err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(st.Dir, "root.qcow2")
	if err := os.WriteFile(overlay, []byte("overlay"), 0o600); err != nil {
		t.Fatal(err)
	}
	made, err := s.Commit(t.Context(), st, Template{Name: st.Name, Key: key, CreatedAt: time.Now().UTC(),
		Disk: disk.Base{Path: overlay, Bytes: 4096, Driver: "qcow2", On: &disk.Base{Path: base, Bytes: 4096}}})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestATemplateAppearsWholeOrNotAtAll(t *testing.T) {
	s := &Shelf{Root: filepath.Join(t.TempDir(), "templates")}
	st, err := s.Begin("one")
	if err != nil {
		t.Fatal(err)
	}
	if left, err := s.Leftovers(); err != nil || len(left) != 1 || left[0] != st.Dir {
		t.Errorf("stages: %q, %v", left, err)
	}
	if names, err := s.Names(); err != nil || len(names) != 0 {
		t.Errorf("before it is committed there are %q, %v", names, err)
	}
	if err := st.Discard(); err != nil {
		t.Fatal(err)
	}
	made := commit(t, s, "one", "k1")
	got, err := s.Find("k1")
	if err != nil || got.Dir != made.Dir || got.Disk.Path != filepath.Join(made.Dir, "root.qcow2") || s.Check(got) != nil {
		t.Errorf("found %+v, %v, check %v", got, err, s.Check(got))
	}
	if info, err := os.Stat(got.Saved().Memory); err != nil || info.Mode().Perm() != 0o600 || info.Size() != 64<<20 {
		t.Errorf("memory: %v, %v", info, err)
	}
	if bytes, err := got.Allocated(); err != nil || bytes > 1<<20 || got.Bytes > 1<<20 {
		t.Errorf("it takes %d bytes, %d at first, %v", bytes, got.Bytes, err)
	}
	if _, err := s.Find("k2"); errs.KindOf(err) != errs.NotFound {
		t.Errorf("another key: %v", err)
	}
}

func TestDamageToAnyFileIsFound(t *testing.T) {
	s := &Shelf{Root: t.TempDir()}
	for _, name := range []string{memoryFile, stateFile, "root.qcow2"} {
		made := commit(t, s, "t-"+name[:4], name)
		if err := s.Check(made); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(made.Dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)-1] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(made); errs.KindOf(err) != errs.Internal || err == nil {
			t.Errorf("a flipped bit in %s: %v", name, err)
		}
		b[len(b)-1] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(made); err != nil {
			t.Errorf("%s as it was: %v", name, err)
		}
		if err := os.Truncate(path, 2); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(made); err == nil {
			t.Errorf("%s cut short is taken for good", name)
		}
	}
	made := commit(t, s, "based", "based")
	if err := os.Remove(made.Disk.On.Path); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(made); err == nil {
		t.Error("a template without its image is taken for good")
	}
}

// What a record tells is that of its template or nothing, whichever bit of it flips.
func TestDamageToARecordIsFound(t *testing.T) {
	s := &Shelf{Root: t.TempDir()}
	made := commit(t, s, "one", "k")
	for _, name := range []string{recordFile, sumFile} {
		path := filepath.Join(made.Dir, name)
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.Chmod(path, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		for i := range b[:len(b)-1] { // what ends the line says nothing
			b[i] ^= 1
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Get("one"); err == nil {
				t.Fatalf("with another byte %d in %s it is %+v", i, name, got)
			}
			b[i] ^= 1
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(made.Dir, sumFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("one"); err != nil {
		t.Errorf("one that an earlier banger has made: %v", err)
	}
}

func TestRetiredTemplatesKeepTheirDisks(t *testing.T) {
	s := &Shelf{Root: t.TempDir()}
	old := commit(t, s, "old", "k")
	if err := s.Retire(old); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Find("k"); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a retired template is found: %v", err)
	}
	if got, err := s.Get("old"); err != nil || !got.Retired() || got.Disk.Check() != nil {
		t.Errorf("the retired one: %+v, %v", got, err)
	}
	fresh := commit(t, s, "new", "k")
	if err := s.Use(fresh); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Find("k"); err != nil || got.Name != "new" {
		t.Errorf("found %+v, %v", got, err)
	}
	for range 2 { // finding none is success
		if err := s.Remove("old"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(old.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its directory is left: %v", err)
	}
	if err := os.WriteFile(filepath.Join(fresh.Dir, recordFile+".x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(fresh.Dir, recordFile), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(fresh.Dir, recordFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(); err != nil || len(all) != 0 {
		t.Errorf("a damaged record is listed: %+v, %v", all, err)
	}
	if names, err := s.Names(); err != nil || len(names) != 1 {
		t.Errorf("names: %q, %v", names, err)
	}
}

// A whole disk has no sum: that it got to the host's disk must be sure before its record does.
func TestAWholeDiskIsSyncedFirst(t *testing.T) {
	s := &Shelf{Root: filepath.Join(t.TempDir(), "templates")}
	for _, there := range []bool{true, false} { // what can't be opened can't be synced
		st, err := s.Begin("one")
		if err != nil {
			t.Fatal(err)
		}
		raw := filepath.Join(st.Dir, "root.img")
		if there {
			if err := os.WriteFile(raw, make([]byte, 4096), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err = s.Commit(t.Context(), st, Template{Name: st.Name, Key: "k", Disk: disk.Base{Path: raw, Bytes: 4096, Driver: "copy"}})
		if (err == nil) != there {
			t.Errorf("committed with a disk %v: %v", there, err)
		}
		if err := errors.Join(st.Discard(), s.Remove("one")); err != nil {
			t.Fatal(err)
		}
	}
}
