package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/image/apt"
	"banger/internal/image/shelf"
)

// The phases of a build, in order. What a phase hashes is its input and the hash of the one
// before, so that equal hashes mean that nothing up to there has changed.
const (
	phaseBootstrap  = "bootstrap"  // the least of a system
	phasePackages   = "packages"   // the manifest's packages on it
	phaseFiles      = "files"      // what the manifest adds, leaves out and links
	phaseCommands   = "commands"   // what a machine booted from that has changed
	phaseFilesystem = "filesystem" // all of that as one file
)

// recipe is the version of how images are built: a change that makes other images of the
// same manifest changes it.
const recipe = 1

// plan returns the phases of the manifest's build from these sources.
func (m Manifest) plan(sources []apt.Source) []Phase {
	var phases []Phase
	last := ""
	add := func(name string, input ...any) {
		last = hashOf(append([]any{name, last}, input...)...)
		phases = append(phases, Phase{name, last})
	}
	lines := make([]string, len(sources))
	for i, s := range sources {
		lines[i] = s.Line()
	}
	var sums []string
	for _, e := range m.Entries {
		sums = append(sums, e.sum)
	}
	packages := slices.Sorted(slices.Values(m.Packages))
	add(phaseBootstrap, recipe, m.Distribution, m.Release, m.Variant, lines)
	add(phasePackages, packages)
	add(phaseFiles, m.Entries, sums, m.Keep, m.Drop, m.Busybox)
	if len(m.Commands) > 0 {
		add(phaseCommands, m.Bytes, m.JournalBytes, m.Commands)
	}
	add(phaseFilesystem, m.Bytes, m.JournalBytes, m.Init)
	return phases
}

// phaseHash returns the hash of the named phase; "" if there is none.
func phaseHash(phases []Phase, name string) string {
	for _, p := range phases {
		if p.Name == name {
			return p.Hash
		}
	}
	return ""
}

// outputs keeps what phases made, by the phases' hashes, in a directory: so that the
// next build begins where it differs. It is a cache; files go when they were not used for
// long. Without a directory nothing is kept.
type outputs struct{ dir string }

func (o outputs) keeps() bool { return o.dir != "" }

const (
	// keepOutputs is how many bytes of outputs are kept.
	keepOutputs = 4 << 30
	// outputInUse is how long after its last use an output may still be in use: longer
	// than a build takes.
	outputInUse = 3 * time.Hour
)

func (o outputs) path(phase, hash string) string {
	return filepath.Join(o.dir, phase+"-"+hash[:min(len(hash), 32)])
}

// get returns the path of a phase's output, and whether it is there.
func (o outputs) get(phase, hash string) (string, bool) {
	path := o.path(phase, hash)
	now := time.Now()
	return path, o.keeps() && os.Chtimes(path, now, now) == nil
}

// put moves a finished output to where get finds it.
func (o outputs) put(phase, hash, from string) (string, error) {
	path := o.path(phase, hash)
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return "", err
	}
	f, err := os.Open(from)
	if err != nil {
		return "", err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return "", err
	}
	return path, os.Rename(from, path)
}

// ForgetPhases removes what builds have kept to begin where they differ, and returns its
// bytes; dry: it only tells. Otherwise the caller makes sure that no build is at work.
func (s *Store) ForgetPhases(dry bool) (int64, error) {
	o := outputs{filepath.Join(s.dir, outputsDir)}
	entries, err := os.ReadDir(o.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	var sum int64
	for _, e := range entries {
		bytes, err := shelf.Allocated(filepath.Join(o.dir, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a build may evict meanwhile
			return 0, err
		}
		sum += bytes
	}
	if !dry && err == nil {
		err = os.RemoveAll(o.dir)
	}
	return sum, err
}

// evict removes those not used for longest until the rest takes no more than keep bytes.
// Those used a short time ago stay.
func (o outputs) evict(keep int64, inUse time.Duration) error {
	entries, err := os.ReadDir(o.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	type output struct {
		path  string
		used  time.Time
		bytes int64
	}
	var all []output
	for _, e := range entries {
		path := filepath.Join(o.dir, e.Name())
		var bytes int64
		info, err := e.Info()
		if err == nil {
			bytes, err = shelf.Allocated(path)
		}
		if errors.Is(err, fs.ErrNotExist) { // another build has evicted it meanwhile
			continue
		}
		if err != nil {
			return err
		}
		all = append(all, output{path, info.ModTime(), bytes})
	}
	slices.SortFunc(all, func(a, b output) int {
		if c := b.used.Compare(a.used); c != 0 {
			return c
		}
		return strings.Compare(a.path, b.path)
	})
	var sum int64
	for _, f := range all {
		sum += f.bytes
		if sum > keep && time.Since(f.used) > inUse {
			if gone := os.Remove(f.path); !errors.Is(gone, fs.ErrNotExist) {
				err = errors.Join(err, gone)
			}
		}
	}
	return err
}
