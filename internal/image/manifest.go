package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"

	"banger/internal/errs"
	"banger/internal/image/shelf"
)

//go:embed manifests/*.toml
var manifests embed.FS

// Sizes a filesystem may have. The least holds a journal and a few files; the most is
// what its group descriptors can be grown to.
const (
	minBytes = 16 << 20
	maxBytes = 1 << 40
)

// Manifest says how to build an image.
type Manifest struct {
	Name         string
	Distribution string // "debian"
	Release      string // its code name
	Variant      string // of mmdebstrap: which packages there are beside those listed
	Packages     []string
	Bytes        int64 // size of the filesystem, which is rounded up to 128 MiB
	JournalBytes int64
	Init         string // path in the image, or "" for one without
	// Keep, if not empty, lists the only files kept of the packages.
	Keep []string
	// Drop lists files and trees left out.
	Drop []string
	// Busybox, if not empty, is a path in the image of a busybox, whose applets are linked
	// to it.
	Busybox string
	Entries []Entry // added, in place of what the packages have there
	// Commands are run by /bin/sh, in order, in a machine that is booted from all of that.
	Commands []string
	// Path is the manifest's own file, absolute; empty: banger carries it.
	Path string
	hash string
}

// Entry is a file, directory or symbolic link of an image. All belong to root.
type Entry struct {
	Path    string
	Mode    int64  // permissions
	Dir     bool   // a directory
	Link    string // target of a symbolic link, or ""
	Content string // of a file
	Source  string // the host's file that has its content instead, absolute
	sum     string // SHA-256 of that
}

// Sized returns the manifest with another size of the filesystem, in bytes: then the
// manifest's own is not what the image was built with. errs.Invalid
func (m Manifest) Sized(bytes int64) (Manifest, error) {
	if bytes < minBytes || bytes > maxBytes || m.JournalBytes > bytes/4 {
		return m, errs.New(errs.Invalid, "an image can't have a size of %s", units.BytesSize(float64(bytes))).Try("choose 16M to 1T, and at least 4 times the journal's %s", units.BytesSize(float64(m.JournalBytes)))
	}
	m.Bytes = bytes &^ (1<<20 - 1)
	return m, nil
}

// Hash identifies the manifest's content.
func (m Manifest) Hash() string { return m.hash }

// manifestFile is the format on disk.
type manifestFile struct {
	Name         string   `toml:"name"`     // for people
	Commands     []string `toml:"commands"` // beside what Manifest says
	Distribution string   `toml:"distribution"`
	Release      string   `toml:"release"`
	Variant      string   `toml:"variant"`
	Packages     []string `toml:"packages"`
	Size         string   `toml:"size"`
	Journal      string   `toml:"journal"`
	Init         string   `toml:"init"`
	Keep         []string `toml:"keep"`
	Drop         []string `toml:"drop"`
	Busybox      string   `toml:"busybox"`
	File         []struct {
		Path    string `toml:"path"`
		Mode    string `toml:"mode"`
		Content string `toml:"content"`
		Source  string `toml:"source"` // relative to the manifest
	} `toml:"file"`
	Dir []struct {
		Path string `toml:"path"`
		Mode string `toml:"mode"`
	} `toml:"dir"`
	Link []struct {
		Path   string `toml:"path"`
		Target string `toml:"target"`
	} `toml:"link"`
}

// BuiltIn returns the manifest of that name that banger carries. errs.NotFound if it has
// none.
func BuiltIn(name string) (Manifest, error) {
	b, err := manifests.ReadFile("manifests/" + name + ".toml")
	if err != nil {
		return Manifest{}, errs.New(errs.NotFound, "banger has no manifest of an image %q", name).Try("give one with -f FILE")
	}
	return ParseManifest(b)
}

// maxManifest bounds a manifest, in bytes.
const maxManifest = 1 << 20

// ReadManifest reads the manifest at an absolute path, and looks at the files that it names.
// errs.Invalid, errs.NotFound
func ReadManifest(file string) (Manifest, error) {
	if !filepath.IsAbs(file) {
		return Manifest{}, errs.New(errs.Invalid, "%q is not an absolute path", file)
	}
	text, err := readRegular(file, maxManifest)
	if err != nil {
		return Manifest{}, err
	}
	m, err := ParseManifest(text)
	if err != nil {
		return Manifest{}, err
	}
	m.Path = file
	for i, e := range m.Entries {
		if e.Source == "" {
			continue
		}
		if !filepath.IsAbs(e.Source) {
			e.Source = filepath.Join(filepath.Dir(file), e.Source)
		}
		if info, err := os.Stat(e.Source); err != nil || !info.Mode().IsRegular() {
			return Manifest{}, errs.New(errs.Invalid, "the manifest's file %s, for %s, is no file that can be read", e.Source, e.Path).Because(err)
		}
		if e.sum, _, err = shelf.Checksum(context.Background(), e.Source, nil); err != nil {
			return Manifest{}, errs.New(errs.Invalid, "the manifest's file %s can't be read", e.Source).Because(err)
		}
		m.Entries[i] = e
		m.hash = hashOf(m.hash, e.sum)
	}
	return m, nil
}

// readRegular reads a regular file of at most limit bytes.
func readRegular(file string, limit int64) ([]byte, error) {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "there is no file %s", file)
	}
	if err == nil && (!info.Mode().IsRegular() || info.Size() > limit) {
		return nil, errs.New(errs.Invalid, "%s is no file of at most %d bytes", file, limit)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s can't be read", file).Because(err)
	}
	return os.ReadFile(file)
}

// hashOf hashes values as JSON, so that none runs into the next.
func hashOf(values ...any) string {
	b, err := json.Marshal(values)
	if err != nil {
		panic(err) // a value that no phase has
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// ParseManifest reads a manifest that names no files of the host's, or not yet.
// errs.Invalid if it is not one; unknown keys are errors.
func ParseManifest(text []byte) (Manifest, error) {
	var f manifestFile
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&f); err != nil {
		return Manifest{}, errs.New(errs.Invalid, "the image manifest can't be read").Because(tomlError(err))
	}
	m, err := f.manifest()
	if err != nil {
		return Manifest{}, errs.New(errs.Invalid, "the manifest of image %q is wrong", f.Name).Because(err)
	}
	sum := sha256.Sum256(text)
	m.hash = hex.EncodeToString(sum[:])
	return m, nil
}

// tomlError adds the place that the library's own message leaves out.
func tomlError(err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(strict.Errors) > 0 {
		row, _ := strict.Errors[0].Position()
		return fmt.Errorf("line %d: unknown key %s", row, strings.Join(strict.Errors[0].Key(), "."))
	}
	if d, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, _ := d.Position()
		return fmt.Errorf("line %d: %w", row, err)
	}
	return err
}

var (
	// A package, as apt has it; not "name/release", "name=version" or an option.
	packagePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	wordPattern    = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	variants       = []string{"extract", "essential", "apt", "minbase", "important", "standard"}
)

func (f manifestFile) manifest() (Manifest, error) {
	m := Manifest{
		Name: f.Name, Distribution: f.Distribution, Release: f.Release, Variant: f.Variant,
		Packages: f.Packages, Init: f.Init, Keep: f.Keep, Drop: f.Drop, Busybox: f.Busybox, Commands: f.Commands,
	}
	if m.Variant == "" {
		f.Variant, m.Variant = "minbase", "minbase"
	}
	if f.Journal == "" {
		f.Journal = "16M"
	}
	if f.Distribution != "debian" {
		return m, fmt.Errorf("distribution is %q, and only debian can be built", f.Distribution)
	}
	if !wordPattern.MatchString(f.Release) {
		return m, fmt.Errorf("release %q is no code name", f.Release)
	}
	if !slices.Contains(variants, f.Variant) {
		return m, fmt.Errorf("variant is %q, not one of %s", f.Variant, strings.Join(variants, ", "))
	}
	for _, p := range f.Packages {
		if !packagePattern.MatchString(p) {
			return m, fmt.Errorf("%q is no name of a package", p)
		}
	}
	var err error
	if m.Bytes, err = parseSize("size", f.Size); err != nil {
		return m, err
	}
	if m.JournalBytes, err = parseSize("journal", f.Journal); err != nil {
		return m, err
	}
	if m.Bytes < minBytes || m.Bytes > maxBytes {
		return m, fmt.Errorf("size %s is not between 16M and 1T", f.Size)
	}
	if m.JournalBytes < 4<<20 || m.JournalBytes > m.Bytes/4 {
		return m, fmt.Errorf("journal %s is not between 4M and a quarter of the size", f.Journal)
	}
	if m.Entries, err = f.entries(); err != nil {
		return m, err
	}
	for _, c := range f.Commands {
		if strings.TrimSpace(c) == "" || strings.ContainsRune(c, 0) {
			return m, fmt.Errorf("%q is no command", c)
		}
	}
	paths := append(append([]string{}, f.Keep...), f.Drop...)
	for _, p := range []string{f.Init, f.Busybox} {
		if p != "" {
			paths = append(paths, p)
		}
	}
	for _, p := range paths {
		if err := checkPath(p); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (f manifestFile) entries() ([]Entry, error) {
	var out []Entry
	for _, d := range f.Dir {
		mode, err := parseMode(d.Mode, 0o755)
		if err != nil {
			return nil, fmt.Errorf("directory %s: %w", d.Path, err)
		}
		out = append(out, Entry{Path: d.Path, Mode: mode, Dir: true})
	}
	for _, e := range f.File {
		mode, err := parseMode(e.Mode, 0o644)
		if err != nil {
			return nil, fmt.Errorf("file %s: %w", e.Path, err)
		}
		if e.Source != "" && e.Content != "" {
			return nil, fmt.Errorf("file %s has a content and a source", e.Path)
		}
		out = append(out, Entry{Path: e.Path, Mode: mode, Content: e.Content, Source: e.Source})
	}
	for _, l := range f.Link {
		if l.Target == "" || strings.ContainsRune(l.Target, 0) {
			return nil, fmt.Errorf("link %s has no target", l.Path)
		}
		out = append(out, Entry{Path: l.Path, Mode: 0o777, Link: l.Target})
	}
	seen := map[string]bool{}
	for _, e := range out {
		if err := checkPath(e.Path); err != nil {
			return nil, err
		}
		if seen[e.Path] {
			return nil, fmt.Errorf("%s is there twice", e.Path)
		}
		seen[e.Path] = true
	}
	return out, nil
}

// checkPath wants a clean absolute path below the root.
func checkPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.ContainsRune(p, 0) {
		return fmt.Errorf("%q is not a clean absolute path", p)
	}
	return nil
}

func parseMode(s string, missing int64) (int64, error) {
	if s == "" {
		return missing, nil
	}
	mode, err := strconv.ParseInt(s, 8, 64)
	if err != nil || mode < 0 || mode > 0o7777 {
		return 0, fmt.Errorf("%q is no mode in octal", s)
	}
	return mode, nil
}

func parseSize(key, s string) (int64, error) {
	n, err := units.RAMInBytes(s)
	if err != nil || n%(1<<20) != 0 {
		return 0, fmt.Errorf("%s %q is not a number of whole MiB, as 256M or 4G", key, s)
	}
	return n, nil
}
