package image

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/renameio/v2"

	"banger/internal/errs"
	"banger/internal/image/shelf"
)

const (
	// generationsDir has the images that names mean, or meant, a directory each. It begins
	// with a dot as no name does.
	generationsDir = ".generations"
	namesFile      = "names.json"
	outputsDir     = ".phases" // what phases of builds made
)

// Store is the images of a state directory, and beside them those of a runtime bundle,
// which are only read. An image is never changed: to make one anew is to make another and
// let the name mean that. The one before stays for as long as it is in use; it is still
// meant by its digest. One process at a time has a state directory's store.
//
// The directory also shows images that someone put there in a directory of their name.
type Store struct {
	dir    string
	bundle func() (dir string, err error)

	mu      sync.Mutex // held while names change
	flights flights
}

// NewStore returns the store in dir, which need not exist yet. bundle tells the directory
// of a runtime bundle's images, or why there is none.
func NewStore(dir string, bundle func() (string, error)) *Store {
	return &Store{dir: dir, bundle: bundle}
}

// names maps each name to the directory of its image below generationsDir.
type names map[string]string

func (s *Store) names() (names, error) {
	n := names{}
	b, err := os.ReadFile(filepath.Join(s.dir, namesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	if err != nil {
		return nil, errs.New(errs.Internal, "the names of images can't be read").Because(err).
			Try("move %s away, then name images anew with banger image tag", filepath.Join(s.dir, namesFile))
	}
	return n, nil
}

// rename changes the names in one step that survives a power cut.
func (s *Store) rename(change func(names)) error {
	n, err := s.names()
	if err != nil {
		return err
	}
	change(n)
	b, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(s.dir, namesFile), append(b, '\n'), 0o644); err != nil {
		return err
	}
	return shelf.SyncDir(s.dir)
}

func (s *Store) generations() string { return filepath.Join(s.dir, generationsDir) }

// Get returns the image that a person's reference means; see [ParseReference]. A name of
// this store's counts before one of the bundle's. errs.Invalid, errs.NotFound; where a bundle is
// lacking, the reason why.
func (s *Store) Get(reference string) (Image, error) {
	i, err := s.find(reference)
	if err == nil && i.Damage != nil {
		return Image{}, i.Damage
	}
	return i, err
}

// find is Get of an image that may be damaged.
func (s *Store) find(reference string) (Image, error) {
	ref, err := ParseReference(reference)
	if err != nil {
		return Image{}, err
	}
	if ref.Digest == "" {
		return s.named(ref.Name)
	}
	all, err := s.List()
	if err != nil {
		return Image{}, err
	}
	all = slices.DeleteFunc(all, func(i Image) bool { return !ref.matches(i.Digest, append(i.Names, i.Name)) })
	switch {
	case len(all) == 0:
		return Image{}, s.notFound(reference)
	case len(all) > 1:
		return Image{}, errs.New(errs.Invalid, "the digest %q means more than one image", ref.Digest).Try("give more of it")
	}
	return all[0], nil
}

// named is Get for a name; it reads that one image only.
func (s *Store) named(name string) (Image, error) {
	n, err := s.names()
	if err != nil {
		return Image{}, err
	}
	if dir, ok := n[name]; ok {
		return s.generation(dir, n, name)
	}
	roots, noBundle := s.flatRoots()
	if !shelf.IsName(name) { // in a directory there is only what can be called so
		return Image{}, s.notFound(name)
	}
	dir, err := images.Find(name, roots...)
	if errs.KindOf(err) == errs.NotFound {
		if noBundle != nil {
			return Image{}, noBundle
		}
		return Image{}, s.notFound(name)
	}
	if err != nil {
		return Image{}, err
	}
	return s.flat(dir), nil
}

func (s *Store) notFound(reference string) error {
	return errs.New(errs.NotFound, "there is no image %s", reference).Try("banger image ls lists those there are")
}

// generation reads the image in a directory below generationsDir. Of several names it bears
// the one given.
func (s *Store) generation(dir string, n names, name string) (Image, error) {
	i, err := loadUnnamed(filepath.Join(s.generations(), dir))
	if errors.Is(err, fs.ErrNotExist) && !exists(filepath.Join(s.generations(), dir)) { // removed meanwhile
		return Image{}, err
	}
	for of, in := range n {
		if in == dir {
			i.Names = append(i.Names, of)
		}
	}
	slices.Sort(i.Names)
	switch {
	case name != "":
		i.Name = name
	case len(i.Names) > 0:
		i.Name = i.Names[0]
	}
	if i.Damage != nil {
		i.Damage = errs.New(errs.Internal, "the record of image %s is damaged", i.Title()).Because(errors.Unwrap(i.Damage)).
			Try("remove it: banger image rm %s; then make it again", i.Title())
		return i, nil
	}
	i.Stale = s.stale(i)
	return i, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// flatRoots returns the directories that have images in directories of their names, and
// why there is no bundle's among them.
func (s *Store) flatRoots() (roots []string, noBundle error) {
	dir, err := s.bundle()
	if err != nil {
		return []string{s.dir}, err
	}
	return []string{s.dir, dir}, nil
}

// flat reads an image in a directory of its name.
func (s *Store) flat(dir string) Image {
	i, _ := load(dir) // which Damage tells
	i.ReadOnly = filepath.Dir(dir) != s.dir
	if i.Damage == nil {
		i.Stale = s.stale(i)
	}
	return i
}

// List returns all images, by name, damaged ones too. Those that no name means come with none in Names; an
// image of the bundle whose name means another is one of them.
func (s *Store) List() ([]Image, error) {
	n, err := s.names()
	if err != nil {
		return nil, err
	}
	var out []Image
	entries, err := os.ReadDir(s.generations())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.Internal, "can't list the images").Because(err)
	}
	for _, e := range entries {
		if !shelf.IsName(e.Name()) { // one in the making
			continue
		}
		i, err := s.generation(e.Name(), n, "")
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	roots, _ := s.flatRoots() // without a bundle the list is shorter
	seen := map[string]bool{}
	for _, root := range roots {
		dirs, err := images.List(root)
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			i := s.flat(dir)
			if _, other := n[i.Name]; other || seen[i.Name] {
				i.Names = nil
			}
			seen[i.Name] = true
			out = append(out, i)
		}
	}
	slices.SortStableFunc(out, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Tag lets name mean the image that reference means. errs.Invalid, errs.NotFound
func (s *Store) Tag(reference, name string) error {
	name, err := ParseName(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i, err := s.Get(reference)
	if err != nil {
		return err
	}
	if filepath.Dir(i.Dir) != s.generations() {
		if slices.Contains(i.Names, name) {
			return nil
		}
		return errs.New(errs.Invalid, "image %s is in a directory of its name, and can have no other", i.Name).
			Try("make one of it that can: banger image customize %s %s", i.Name, name)
	}
	return s.rename(func(n names) { n[name] = filepath.Base(i.Dir) })
}

// Remove takes a name away or, of a reference with a digest, all names. The image goes with
// its last name; then last is called, with the image and what removes it, and may refuse.
// errs.Conflict if it is part of a bundle.
func (s *Store) Remove(reference string, last func(i Image, remove func() error) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ref, err := ParseReference(reference)
	if err != nil {
		return err
	}
	i, err := s.find(reference)
	if err != nil {
		return err
	}
	if ref.Digest == "" && len(i.Names) > 1 {
		return s.rename(func(n names) { delete(n, ref.Name) })
	}
	return last(i, func() error {
		switch root := filepath.Dir(i.Dir); {
		case i.ReadOnly:
			return errs.New(errs.Conflict, "image %s is part of the runtime bundle, which is only read", i.Name)
		case root == s.generations():
			if err := s.rename(func(n names) {
				for _, name := range i.Names {
					delete(n, name)
				}
			}); err != nil {
				return err
			}
		}
		return images.Remove(filepath.Dir(i.Dir), filepath.Base(i.Dir))
	})
}

// Draft is an image in the making.
type Draft struct {
	Dir   string // for whatever is made on the way; it goes with the draft
	name  string
	store *Store
}

// Begin starts an image that is to be called name. The caller discards the draft in the
// end, also after a commit; a draft of a process that was killed goes with [Store.Leftovers].
// errs.Invalid if nothing can be called so.
func (s *Store) Begin(name string) (*Draft, error) {
	name, err := ParseName(name)
	if err != nil {
		return nil, err
	}
	dir, err := shelf.Scratch(s.dir)
	if err != nil {
		return nil, errs.New(errs.Internal, "can't make a directory for image %s", name).Because(err)
	}
	return &Draft{Dir: dir, name: name, store: s}, nil
}

// Name is what the image will be called.
func (d *Draft) Name() string { return d.name }

// Discard removes what is left of the draft.
func (d *Draft) Discard() error { return removeWork(context.Background(), d.Dir) }

// newID names a directory of an image.
func newID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b[:])
}
