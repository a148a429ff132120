package runtimedir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/image/shelf"
)

// Beside a bundle lie, while or after another takes its place:
const (
	stageSuffix    = ".next"     // one that is being made, after the number of the directory whose place it is to take
	previousSuffix = ".previous" // the one before, for a rollback
	partSuffix     = ".part"     // a download, to be gone on with
)

// Holder calls swap while nothing can come to depend on the files of the bundle that is
// there, and tells which of them are needed by disks of VMs: these the next bundle keeps,
// at their paths. It may refuse next.
type Holder func(next Record, swap func(keep []string) error) error

// nobody is the Holder of a bundle that no VM depends on.
func nobody(_ Record, swap func([]string) error) error { return swap(nil) }

// Terms are what an installation is allowed.
type Terms struct {
	AllowDowngrade bool // to a bundle that is older than the one there is
	// DropOld lets go of images of earlier bundles that no disk of the Holder's is based on. Else
	// they stay: those of another banger on this host may be, and nobody tells.
	DropOld bool
}

// installation is another bundle on its way into the place of the one in dir, or of none.
type installation struct {
	Terms
	dir     string // with links resolved
	stage   string
	current Record // of the bundle there is, or empty
	unlock  func()
}

// begin locks dir and makes an empty stage beside it. The caller ends it.
func begin(dir string, terms Terms) (*installation, error) {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	in := &installation{dir: dir, Terms: terms, unlock: unlock}
	if in.current, err = ReadRecord(dir); err == nil {
		err = settle(dir)
	}
	var number uint64
	if err == nil {
		number, err = numberOf(dir)
	}
	if err == nil {
		in.stage = fmt.Sprintf("%s.%d%s", dir, number, stageSuffix)
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
	err := settle(in.dir)
	in.unlock()
	return err
}

// settle finishes an installation that was cut short after the bundles had changed places, and
// undoes one that was before. dir is locked.
func settle(dir string) error {
	entries, err := os.ReadDir(filepath.Dir(dir))
	for _, e := range entries {
		middle, ours := strings.CutPrefix(e.Name(), filepath.Base(dir)+".")
		number, stage := strings.CutSuffix(middle, stageSuffix)
		if _, nerr := strconv.ParseUint(number, 10, 64); !ours || !stage || nerr != nil {
			continue
		}
		at := filepath.Join(filepath.Dir(dir), e.Name())
		its, nerr := numberOf(at)
		switch {
		case nerr != nil:
			err = errors.Join(err, nerr)
		case strconv.FormatUint(its, 10) == number: // it is the one that another took the place of
			err = errors.Join(err, retire(at, dir))
		default:
			err = errors.Join(err, os.RemoveAll(at))
		}
	}
	return err
}

// numberOf is the inode's, by which a directory is known wherever it is moved to.
func numberOf(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return 0, &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	return st.Ino, nil
}

// retire makes what was the bundle in dir until now the previous one.
func retire(old, dir string) error {
	if _, err := os.Stat(filepath.Join(old, recordFile)); err != nil { // it was no bundle
		return os.RemoveAll(old)
	}
	previous := dir + previousSuffix
	err := host.Fault("drop the bundle before the last")
	if err == nil {
		err = os.RemoveAll(previous)
	}
	if err == nil {
		err = host.Fault("keep the last bundle")
	}
	if err == nil {
		err = os.Rename(old, previous)
	}
	if err != nil {
		return err
	}
	return shelf.SyncDir(filepath.Dir(dir))
}

// accept refuses a bundle that is older than the one there is, unless that is wanted.
func (in *installation) accept(next Record) error {
	now, then := in.current.BuiltAt(), next.BuiltAt()
	if in.AllowDowngrade || !then.Before(now) {
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
			err = host.Fault("write the record of a bundle")
		}
		if err == nil {
			err = writeSynced(filepath.Join(in.stage, recordFile), b, 0o644)
		}
		if err == nil {
			err = syncTree(in.stage)
		}
		if err != nil {
			return err
		}
		// What becomes the bundle is locked too, until the one before has gone.
		unlock, err := lock(in.stage)
		if err != nil {
			return err
		}
		before := in.unlock
		in.unlock = func() { unlock(); before() }
		if err := host.Fault("put a bundle in place"); err != nil {
			return err
		}
		if err := replaceDir(in.stage, in.dir); err != nil {
			return err
		}
		return retire(in.stage, in.dir)
	})
}

// keep hands over files of the present bundle to the next, which has others of that name or
// none: disks of VMs are based on them, by their paths. The content of a name in keep never
// changes, for it has the checksum in it.
func (in *installation) keep(next *Record, keep []string) error {
	have, now := next.Files(), in.current.Files()
	if !in.DropOld {
		for _, p := range slices.Sorted(maps.Keys(now)) {
			if f, there := have[p]; isDisk(p) && (!there || f.SHA256 == now[p].SHA256) && !slices.Contains(keep, p) {
				keep = append(keep, p)
			}
		}
	}
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
			Name: keptPrefix + path.Base(p), Source: "an earlier bundle; disks of VMs may be based on it", BuiltAt: in.current.BuiltAt(), Files: []FileRecord{old}})
	}
	return nil
}

// isDisk tells whether a file is one that disks of VMs can be based on.
func isDisk(path string) bool {
	return strings.HasPrefix(path, imagesDir+"/") && strings.HasSuffix(path, ".ext4")
}

// isLink tells whether two paths are those of one file.
func isLink(a, b string) bool {
	x, errX := os.Lstat(a)
	y, errY := os.Lstat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// Install puts a copy of the bundle in the directory from in the place of the one in dir.
func Install(ctx context.Context, dir, from string, terms Terms, hold Holder, progress Progress) (err error) {
	if _, err := os.Stat(filepath.Join(from, recordFile)); err != nil {
		return errs.New(errs.Invalid, "%s is no runtime bundle", from).Because(err).Try("give the directory that has %s", recordFile)
	}
	next, err := ReadRecord(from)
	if err != nil {
		return err
	}
	in, err := begin(dir, terms)
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
	none := func(err error) error {
		return errs.New(errs.NotFound, "there is no previous runtime bundle").Because(err).Try("banger runtime fetch installs one")
	}
	if _, err := os.Stat(dir); err != nil {
		return none(err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := settle(dir); err != nil {
		return unwritable(dir, err)
	}
	if _, err := os.Stat(filepath.Join(previous, recordFile)); err != nil {
		return none(err)
	}
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
		if err := errors.Join(next.write(previous), syncTree(previous)); err != nil {
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
