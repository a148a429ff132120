package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"banger/internal/errs"
	"banger/internal/image/apt"
	"banger/internal/image/shelf"
)

// newerFile keeps what checks found, by the images' digests.
const newerFile = "newer.json"

// Newer is a package of an image that the mirror has in a newer version.
type Newer struct {
	Name string `json:"name"`
	Has  string `json:"has"`
	Now  string `json:"now"`
}

// stale tells why the image is not what its manifest makes now: its manifest has changed, or
// the last check found newer packages. Empty: nothing is known against it.
func (s *Store) stale(i Image) string {
	if i.ManifestHash == "" { // it was not built
		return ""
	}
	// A manifest that is gone or can't be read says nothing of the image.
	if m, err := i.manifest(); err == nil && m.Hash() != i.ManifestHash {
		return "its manifest has changed since"
	}
	newer, err := s.newer()
	if n := len(newer[i.Digest]); err == nil && n > 0 {
		return fmt.Sprintf("%d of its packages have newer versions", n)
	}
	return ""
}

// manifest reads the manifest that the image was built from, as it is now.
func (i Image) manifest() (Manifest, error) {
	if i.ManifestPath != "" {
		return ReadManifest(i.ManifestPath)
	}
	return BuiltIn(BuiltInName(i.Name))
}

// BuiltInName is the name of the manifest of banger's own that an image is built from where
// none is given.
func BuiltInName(image string) string {
	repository, _ := splitTag(image)
	return repository
}

// RebuildCommand is what a person types to have the image built anew.
func (i Image) RebuildCommand() string {
	args := []string{"banger image build"}
	if m, err := i.manifest(); err == nil && m.Hash() == i.ManifestHash {
		args = append(args, "--refresh")
	}
	args = append(args, i.Name)
	if i.ManifestPath != "" {
		args = append(args, "-f", quoted(i.ManifestPath))
	}
	return strings.Join(args, " ")
}

// quoted writes a word so that a shell takes it as it is.
func quoted(word string) string {
	if strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+=:@,") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// Check asks the mirrors that apt's configuration in etc names for newer versions of the
// image's packages, and remembers what they have. errs.Invalid if it has no Debian packages.
func (s *Store) Check(ctx context.Context, reference, etc string, progress Progress) (_ []Newer, err error) {
	i, err := s.Get(reference)
	if err != nil {
		return nil, err
	}
	if i.Distribution != "debian" || len(i.Packages) == 0 {
		return nil, errs.New(errs.Invalid, "image %s has no Debian packages that are known", i.Title())
	}
	sources, err := apt.HostSources(etc, i.Release)
	if err != nil {
		return nil, err
	}
	dir, err := shelf.Scratch(s.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, removeTree(ctx, dir)) }()
	progress("fetching package lists", 0, 0)
	private, err := apt.Open(ctx, dir, sources)
	if err != nil {
		return nil, err
	}
	installed := map[string]string{}
	for _, p := range i.Packages {
		installed[p.Name] = p.Version
	}
	upgrades, err := private.Upgrades(ctx, installed)
	if err != nil {
		return nil, err
	}
	found := make([]Newer, len(upgrades))
	for n, u := range upgrades {
		found[n] = Newer(u)
	}
	return found, s.noteNewer(i, found)
}

// newer reads what checks found.
func (s *Store) newer() (map[string][]Newer, error) {
	n := map[string][]Newer{}
	b, err := os.ReadFile(filepath.Join(s.dir, newerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	return n, err
}

// noteNewer keeps what a check of the image found, and forgets what was found of images that
// are gone.
func (s *Store) noteNewer(i Image, found []Newer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.List()
	if err != nil {
		return err
	}
	was, err := s.newer()
	if err != nil {
		was = nil // it is a cache
	}
	now := map[string][]Newer{}
	for digest, n := range was {
		if slices.ContainsFunc(all, func(o Image) bool { return o.Digest == digest }) {
			now[digest] = n
		}
	}
	now[i.Digest] = found
	b, err := json.MarshalIndent(now, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(s.dir, newerFile), append(b, '\n'), 0o644)
}
