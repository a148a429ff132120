package runtimedir

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"banger/internal/errs"
)

// schema is the version of the bundle's description and record that this code knows.
const schema = 1

// Spec is what a bundle is made of: runtime-bundle.toml.
type Spec struct {
	Schema   int       `toml:"schema"`
	Archive  Archive   `toml:"archive"`
	Kernels  []Kernel  `toml:"kernel"`
	Images   []Image   `toml:"image"`
	Programs []Program `toml:"program"`
}

// Artefact is what all artefacts have.
type Artefact struct {
	Name    string `toml:"name"`
	Licence string `toml:"licence"`
	Path    string `toml:"path"` // its directory in the bundle
	Mode    string `toml:"mode"` // of its files, octal
}

// Archive is where a packed bundle is, and what it must be.
type Archive struct {
	URL    string `toml:"url"`
	SHA256 string `toml:"sha256"`
	Bytes  int64  `toml:"bytes"` // 0: unknown
}

// Kernel is a guest kernel out of a Debian package.
type Kernel struct {
	Artefact
	Release    string `toml:"release"` // Debian's code name
	Package    string `toml:"package"`
	RealPrefix string `toml:"real_prefix"` // of the package that Package depends on, or "" if it has the kernel itself
}

// Image is a root filesystem with a built-in manifest.
type Image struct {
	Artefact
	// Optional tells that a build makes it only when it is asked for by name.
	Optional bool `toml:"optional"`
}

// Program is what Debian does not have: members of an archive at a URL.
type Program struct {
	Artefact
	Version string   `toml:"version"`
	Arch    string   `toml:"arch"` // as uname -m says
	URL     string   `toml:"url"`
	SHA256  string   `toml:"sha256"` // of the archive
	Files   []Member `toml:"files"`
}

// Optional tells whether an artefact, "image/lab", is one that a build makes only when it is
// asked for by name.
func (s Spec) Optional(name string) bool {
	return slices.ContainsFunc(s.Images, func(i Image) bool { return i.Optional && "image/"+i.Name == name })
}

// Member is a file of a program's archive.
type Member struct {
	Name   string `toml:"name"`   // in the bundle
	Member string `toml:"member"` // path in the archive
	SHA256 string `toml:"sha256"` // or "": the archive's vouches for it
}

// ParseSpec reads a bundle's description. errs.Invalid if it is not one; unknown keys are
// errors.
func ParseSpec(text []byte) (Spec, error) {
	var s Spec
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&s)
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(strict.Errors) > 0 {
		err = fmt.Errorf("unknown key %s", strings.Join(strict.Errors[0].Key(), "."))
	}
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return Spec{}, errs.New(errs.Invalid, "the description of the runtime bundle is wrong").Because(err)
	}
	return s, nil
}

var (
	labelPattern  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	wordPattern   = regexp.MustCompile(`^[a-z0-9][a-z0-9+_.-]*$`)
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func (s Spec) check() error {
	if s.Schema != schema {
		return fmt.Errorf("schema is %d, and this banger knows %d", s.Schema, schema)
	}
	seen := map[string]bool{}
	one := func(a Artefact, kind, dir, variant string) error {
		switch key := kind + "/" + a.Name + variant; {
		case !labelPattern.MatchString(a.Name):
			return fmt.Errorf("%q is no name of a %s", a.Name, kind)
		case seen[key]:
			return fmt.Errorf("%s %s is there twice", kind, a.Name)
		case a.Licence == "":
			return fmt.Errorf("%s %s has no licence", kind, a.Name)
		case a.Path != dir+"/"+a.Name:
			return fmt.Errorf("%s %s: path is %q, and must be %s/%s", kind, a.Name, a.Path, dir, a.Name)
		case !slices.Contains(modes, a.Mode):
			return fmt.Errorf("%s %s: mode %q is none of %s", kind, a.Name, a.Mode, strings.Join(modes, ", "))
		default:
			seen[key] = true
		}
		return nil
	}
	for _, k := range s.Kernels {
		if err := one(k.Artefact, "kernel", kernelsDir, ""); err != nil {
			return err
		}
		if !wordPattern.MatchString(k.Release) || !wordPattern.MatchString(k.Package) {
			return fmt.Errorf("kernel %s: release %q, package %q", k.Name, k.Release, k.Package)
		}
	}
	for _, i := range s.Images {
		if err := one(i.Artefact, "image", imagesDir, ""); err != nil {
			return err
		}
	}
	for _, p := range s.Programs {
		if err := one(p.Artefact, "program", programsDir, " for "+p.Arch); err != nil {
			return err
		}
		if err := p.check(); err != nil {
			return fmt.Errorf("program %s: %w", p.Name, err)
		}
	}
	if s.Archive != (Archive{}) {
		if err := s.Archive.check(); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
	}
	return nil
}

func (p Program) check() error {
	if err := (Archive{URL: p.URL, SHA256: p.SHA256}).check(); err != nil {
		return err
	}
	if !wordPattern.MatchString(p.Arch) || p.Version == "" || len(p.Files) == 0 {
		return fmt.Errorf("arch %q, version %q, %d files", p.Arch, p.Version, len(p.Files))
	}
	for _, f := range p.Files {
		switch {
		case !wordPattern.MatchString(f.Name):
			return fmt.Errorf("%q is no name of a file", f.Name)
		case f.SHA256 != "" && !digestPattern.MatchString(f.SHA256):
			return errors.New("a sha256 is not 64 hexadecimal digits")
		case f.Member == "" || path.IsAbs(f.Member) || path.Clean(f.Member) != f.Member || f.Member == ".." || strings.HasPrefix(f.Member, "../"):
			return fmt.Errorf("member %q is no clean path", f.Member)
		}
	}
	return nil
}

// check wants an address that can be fetched from, and what is to be there.
func (a Archive) check() error {
	u, err := url.Parse(a.URL)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("url %q is no https address", a.URL)
	case !digestPattern.MatchString(a.SHA256):
		return errors.New("a sha256 is not 64 hexadecimal digits")
	case a.Bytes < 0:
		return fmt.Errorf("bytes is %d", a.Bytes)
	}
	return nil
}
