package runtimedir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/image/shelf"
)

// Beside a bundle lie, while or after another takes its place:
const (
	stageSuffix    = ".next"     // one that is being made; no bundle until its record is there
	previousSuffix = ".previous" // the one before, for a rollback
	partSuffix     = ".part"     // a download, to be gone on with
)

// Holder calls swap while nothing can come to depend on the files of the bundle that is
// there, and tells which of them are needed by disks of VMs: these the next bundle keeps,
// at their paths. It may refuse next.
type Holder func(next Record, swap func(keep []string) error) error

// nobody is the Holder of a bundle that no VM depends on.
func nobody(_ Record, swap func([]string) error) error { return swap(nil) }

// installation is another bundle on its way into the place of the one in dir, or of none.
type installation struct {
	dir            string // with links resolved
	stage          string
	allowDowngrade bool
	current        Record // of the bundle there is, or empty
	unlock         func()
}

// begin locks dir and makes an empty stage beside it. The caller ends it.
func begin(dir string, allowDowngrade bool) (*installation, error) {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	in := &installation{dir: dir, stage: dir + stageSuffix, allowDowngrade: allowDowngrade, unlock: unlock}
	if in.current, err = ReadRecord(dir); err == nil {
		err = os.RemoveAll(in.stage) // of one that was cut short
	}
	if err == nil {
		err = os.Mkdir(in.stage, 0o755)
	}
	if err != nil {
		unlock()
		return nil, unwritable(dir, err)
	}
	return in, nil
}

func unwritable(dir string, err error) error {
	if !errors.Is(err, os.ErrPermission) && !errors.Is(err, unix.EROFS) {
		return err
	}
	return errs.New(errs.Unavailable, "can't put a bundle at %s", dir).Because(err).
		Try("do it as root, or name a directory of your own: runtime_dir in the config file, or $%s", EnvDir)
}

// end gives back all that is not a bundle.
func (in *installation) end() error {
	err := os.RemoveAll(in.stage)
	in.unlock()
	return err
}

// accept refuses a bundle that is older than the one there is, unless that is wanted.
func (in *installation) accept(next Record) error {
	now, then := in.current.BuiltAt(), next.BuiltAt()
	if in.allowDowngrade || !then.Before(now) {
		return nil
	}
	return errs.New(errs.Conflict, "that bundle is of %s, older than the one installed, which is of %s", then.Format("2006-01-02 15:04:05"), now.Format("2006-01-02 15:04:05")).
		Try("if you want the older one: --allow-downgrade; the one before the last installation: banger runtime fetch --rollback")
}

// commit makes the stage, whose files are all there, the bundle. What was there becomes the
// previous one. Both happen in one step, before which nothing has changed for anyone.
func (in *installation) commit(next Record, hold Holder) error {
	return hold(next, func(keep []string) error {
		if err := in.keep(&next, keep); err != nil {
			return err
		}
		b, err := next.encode()
		if err == nil {
			err = writeSynced(filepath.Join(in.stage, recordFile), b, 0o644)
		}
		if err == nil {
			err = shelf.SyncDir(in.stage)
		}
		if err != nil {
			return err
		}
		previous := in.dir + previousSuffix
		if err := os.RemoveAll(previous); err != nil {
			return err
		}
		if err := os.Rename(in.stage, previous); err != nil {
			return err
		}
		if err := replaceDir(previous, in.dir); err != nil {
			return err
		}
		if len(in.current.Artefacts) == 0 { // it was no bundle
			return os.RemoveAll(previous)
		}
		return nil
	})
}

// keep hands over files of the present bundle to the next, which has others of that name or
// none: disks of VMs are based on them, by their paths. The content of a name in keep never
// changes, for it has the checksum in it.
func (in *installation) keep(next *Record, keep []string) error {
	have, now := next.Files(), in.current.Files()
	kept := next.Artefacts[:0]
	for _, a := range next.Artefacts {
		if strings.HasPrefix(a.Name, keptPrefix) && !slices.Contains(keep, a.Files[0].Path) { // no longer needed
			if err := os.Remove(filepath.Join(in.stage, filepath.FromSlash(a.Files[0].Path))); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			continue
		}
		kept = append(kept, a)
	}
	next.Artefacts = kept
	for _, p := range keep {
		old, ok := now[p]
		if !ok {
			return errs.New(errs.Conflict, "disks of VMs are based on %s, which the record of the bundle does not know", filepath.Join(in.dir, p)).
				Try("complete the record first: banger runtime build")
		}
		if f, there := have[p]; there && f.SHA256 == old.SHA256 {
			continue
		} else if there {
			return errs.New(errs.Conflict, "the new bundle has another %s, which disks of VMs are based on", p).Try("remove those VMs first: banger rm")
		}
		to := filepath.Join(in.stage, filepath.FromSlash(p))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		from := filepath.Join(in.dir, filepath.FromSlash(p))
		if err := os.Link(from, to); err != nil && !isLink(from, to) { // of a rollback that was killed
			return fmt.Errorf("keep what disks of VMs are based on: %w", err)
		}
		next.Artefacts = append(next.Artefacts, ArtefactRecord{
			Name: keptPrefix + path.Base(p), Source: "an earlier bundle; disks of VMs are based on it", BuiltAt: in.current.BuiltAt(), Files: []FileRecord{old}})
	}
	return nil
}

// isLink tells whether two paths are those of one file.
func isLink(a, b string) bool {
	x, errX := os.Lstat(a)
	y, errY := os.Lstat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// Install puts a copy of the bundle in the directory from in the place of the one in dir.
func Install(ctx context.Context, dir, from string, allowDowngrade bool, hold Holder, progress Progress) (err error) {
	if _, err := os.Stat(filepath.Join(from, recordFile)); err != nil {
		return errs.New(errs.Invalid, "%s is no runtime bundle", from).Because(err).Try("give the directory that has %s", recordFile)
	}
	next, err := ReadRecord(from)
	if err != nil {
		return err
	}
	in, err := begin(dir, allowDowngrade)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.end()) }()
	if err := in.accept(next); err != nil {
		return err
	}
	r, w := io.Pipe()
	packing := make(chan error, 1)
	go func() {
		err := pack(ctx, from, next, w)
		w.CloseWithError(err)
		packing <- err
	}()
	next, err = unpackTar(r, in.stage, func(Record) error { return nil }, func(done, total int64) { progress("copying", done, total) })
	r.Close()
	if perr := <-packing; perr != nil && !errors.Is(perr, io.ErrClosedPipe) {
		return perr
	}
	if err != nil {
		return refused(from, err)
	}
	return in.commit(next, hold)
}

// Rollback puts the previous bundle in the place of the one in dir, and the other way round.
func Rollback(dir string, hold Holder) (err error) {
	if real, lerr := filepath.EvalSymlinks(dir); lerr == nil {
		dir = real
	}
	previous := dir + previousSuffix
	if _, err := os.Stat(filepath.Join(previous, recordFile)); err != nil {
		return errs.New(errs.NotFound, "there is no previous runtime bundle").Because(err).Try("banger runtime fetch installs one")
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	in := installation{dir: dir, stage: previous}
	if in.current, err = ReadRecord(dir); err != nil {
		return err
	}
	next, err := ReadRecord(previous)
	if err != nil {
		return err
	}
	return hold(next, func(keep []string) error {
		if err := in.keep(&next, keep); err != nil {
			return err
		}
		if err := next.write(previous); err != nil {
			return err
		}
		return unwritable(dir, replaceDir(previous, dir))
	})
}

// refused makes an error of what is wrong with a bundle one for a person.
func refused(what string, err error) error {
	if bad, ok := errors.AsType[errPacked](err); ok {
		return errs.New(errs.Invalid, "%s is no bundle that can be used", what).Because(bad).Try("nothing has changed; the bundle there was is still in use")
	}
	return err
}
