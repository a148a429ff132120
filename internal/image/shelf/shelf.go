// Package shelf keeps named directories of finished files: an item appears on a shelf
// whole, synced to disk, or not at all, and goes in one step. It owns names, staging and
// removal, and knows nothing of what the items are.
package shelf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// hidden begins the names of directories that are not items: unfinished or half-removed
// ones. No item's name can begin like it.
const hidden = ".staging-"

// Shelf is a kind of item. Roots are directories; where two have an item of one name, the
// earlier root's counts. A root that does not exist is empty.
type Shelf struct {
	Kind   string // "kernel", "image": for messages and commands
	Record string // the file that describes an item, JSON
}

// Stage is an item in the making.
type Stage struct {
	Dir     string // where its files are made
	target  string
	replace bool
	shelf   Shelf
}

// Begin starts the item root/name, which may only exist if it is to be replaced: then it
// stays until the commit. errs.Conflict if it exists, errs.Invalid if name is no DNS
// label. The caller discards the stage in the end, also after a commit.
func (s Shelf) Begin(root, name string, replace bool) (*Stage, error) {
	if err := s.checkName(name); err != nil {
		return nil, err
	}
	st := &Stage{target: filepath.Join(root, name), replace: replace, shelf: s}
	if _, err := os.Lstat(st.target); err == nil && !replace {
		return nil, s.taken(name)
	}
	err := os.MkdirAll(root, 0o755)
	if err == nil {
		st.Dir, err = os.MkdirTemp(root, hidden+name+"-")
	}
	if err != nil {
		return nil, errs.New(errs.Internal, "can't make a directory for %s %s", s.Kind, name).Because(err)
	}
	return st, nil
}

// Write adds a file of this content, read-only, to the item.
func (st *Stage) Write(name string, content []byte) error {
	f, err := os.OpenFile(filepath.Join(st.Dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	if _, err = f.Write(content); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Commit writes the record and puts the item on its shelf, from which moment it survives
// a power cut; other files in it must have been synced. It returns the item's directory.
func (st *Stage) Commit(record any) (string, error) {
	b, err := json.MarshalIndent(record, "", "  ")
	if err == nil {
		err = st.Write(st.shelf.Record, append(b, '\n'))
	}
	if err == nil {
		err = os.Chmod(st.Dir, 0o755)
	}
	if err == nil {
		err = SyncDir(st.Dir)
	}
	if err == nil {
		// A directory is never renamed onto one that has files.
		err = os.Rename(st.Dir, st.target)
	}
	if errors.Is(err, fs.ErrExist) && st.replace {
		// In one step; the stage then has the old item.
		err = unix.Renameat2(unix.AT_FDCWD, st.Dir, unix.AT_FDCWD, st.target, unix.RENAME_EXCHANGE)
	}
	if errors.Is(err, fs.ErrExist) {
		return "", st.shelf.taken(filepath.Base(st.target))
	}
	if err == nil {
		err = SyncDir(filepath.Dir(st.target))
	}
	if err != nil {
		return "", errs.New(errs.Internal, "can't store %s %s", st.shelf.Kind, filepath.Base(st.target)).Because(err)
	}
	return st.target, nil
}

// Discard removes what is left of the stage: after a commit, only what it replaced.
func (st *Stage) Discard() error { return os.RemoveAll(st.Dir) }

// Scratch makes a directory below root for work on the way to an item. The caller removes
// it; until then it is among the leftovers.
func Scratch(root string) (string, error) {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	return os.MkdirTemp(root, hidden)
}

// Leftovers returns the stages and scratch directories below root: of work going on now, or of
// processes that were killed. Who knows that nobody is at work there may remove them.
func Leftovers(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), hidden) {
			out = append(out, filepath.Join(root, e.Name()))
		}
	}
	return out, nil
}

// Bytes returns how much the item's files take on disk.
func (st *Stage) Bytes() (int64, error) {
	entries, err := os.ReadDir(st.Dir)
	if err != nil {
		return 0, err
	}
	var n int64
	for _, e := range entries {
		bytes, err := Allocated(filepath.Join(st.Dir, e.Name()))
		if err != nil {
			return 0, err
		}
		n += bytes
	}
	return n, nil
}

// Allocated returns how many bytes the file at path takes on disk.
func Allocated(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return st.Blocks * 512, nil
}

// List returns the directories of all items below the roots, sorted by name.
func (s Shelf) List(roots ...string) ([]string, error) {
	dirs := map[string]string{}
	for _, root := range roots {
		entries, err := os.ReadDir(root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, errs.New(errs.Internal, "can't list the %ss in %s", s.Kind, root).Because(err)
		}
		for _, e := range entries {
			if _, seen := dirs[e.Name()]; !seen && e.IsDir() && s.checkName(e.Name()) == nil {
				dirs[e.Name()] = filepath.Join(root, e.Name())
			}
		}
	}
	var out []string
	for _, dir := range dirs {
		out = append(out, dir)
	}
	slices.SortFunc(out, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	return out, nil
}

// Find returns the directory of the item of that name. errs.NotFound if no root has it.
func (s Shelf) Find(name string, roots ...string) (string, error) {
	if err := s.checkName(name); err != nil {
		return "", err
	}
	for _, root := range roots {
		dir := filepath.Join(root, name)
		if _, err := os.Stat(dir); err == nil {
			return dir, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", errs.New(errs.Internal, "can't look for %s %s", s.Kind, name).Because(err)
		}
	}
	return "", errs.New(errs.NotFound, "there is no %s %s", s.Kind, name).Try("banger %s ls lists those there are", s.Kind)
}

// Load reads the record of the item in dir into v, and returns its bytes.
func (s Shelf) Load(dir string, v any) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(dir, s.Record))
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return b, errs.New(errs.Internal, "the record of %s %s is damaged", s.Kind, filepath.Base(dir)).Because(err).
			Try("remove %s and make it again", dir)
	}
	return b, nil
}

// Remove takes the item off the shelf root. errs.NotFound if it is not there.
func (s Shelf) Remove(root, name string) error {
	if err := s.checkName(name); err != nil {
		return err
	}
	// Renamed first, so that a half-removed item is never seen.
	gone, err := os.MkdirTemp(root, hidden+name+"-")
	if err == nil {
		err = errors.Join(os.Rename(filepath.Join(root, name), filepath.Join(gone, name)), os.RemoveAll(gone))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "there is no %s %s in %s", s.Kind, name, root).Try("banger %s ls lists those there are", s.Kind)
	}
	if err != nil {
		return errs.New(errs.Internal, "can't remove %s %s", s.Kind, name).Because(err)
	}
	return nil
}

func (s Shelf) taken(name string) error {
	return errs.New(errs.Conflict, "%s %s exists already", s.Kind, name).Try("choose another name, or remove it: banger %s rm %s", s.Kind, name)
}

func (s Shelf) checkName(name string) error {
	if !IsName(name) {
		return errs.New(errs.Invalid, "no %s can be called %q", s.Kind, name).Try("use 1 to 63 of a-z, 0-9 and -, with no - at either end")
	}
	return nil
}

// IsName wants a DNS label: 1 to 63 of a-z, 0-9 and "-", which neither begins nor ends it.
func IsName(name string) bool {
	ok := len(name) >= 1 && len(name) <= 63 && name[0] != '-' && name[len(name)-1] != '-'
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'
	}
	return ok
}

// SyncDir has what was made, renamed and removed in dir survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
