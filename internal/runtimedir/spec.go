package runtimedir

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"banger/internal/errs"
)

// schema is the version of the bundle's description and record that this code knows.
const schema = 1

// Spec is what a bundle is made of: runtime-bundle.toml.
type Spec struct {
	Schema   int       `toml:"schema"`
	Kernels  []Kernel  `toml:"kernel"`
	Images   []Image   `toml:"image"`
	Programs []Program `toml:"program"`
}

// Kernel is a guest kernel out of a Debian package.
type Kernel struct {
	Name       string `toml:"name"`
	Release    string `toml:"release"` // Debian's code name
	Package    string `toml:"package"`
	RealPrefix string `toml:"real_prefix"` // of the package that Package depends on, or "" if it has the kernel itself
}

// Image is a root filesystem with a built-in manifest.
type Image struct {
	Name string `toml:"name"`
	// Optional tells that a build makes it only when it is asked for by name.
	Optional bool `toml:"optional"`
}

// Program is a program that Debian does not have: a member of an archive at a URL.
type Program struct {
	Name         string `toml:"name"`
	Version      string `toml:"version"`
	Arch         string `toml:"arch"`
	URL          string `toml:"url"`
	SHA256       string `toml:"sha256"` // of the archive
	Member       string `toml:"member"` // path in it
	MemberSHA256 string `toml:"member_sha256"`
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
	wordPattern   = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*$`)
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func (s Spec) check() error {
	if s.Schema != schema {
		return fmt.Errorf("schema is %d, and this banger knows %d", s.Schema, schema)
	}
	seen := map[string]bool{}
	name := func(kind, name string) error {
		if !labelPattern.MatchString(name) {
			return fmt.Errorf("%q is no name of a %s", name, kind)
		}
		if seen[kind+"/"+name] {
			return fmt.Errorf("%s %s is there twice", kind, name)
		}
		seen[kind+"/"+name] = true
		return nil
	}
	for _, k := range s.Kernels {
		if err := name("kernel", k.Name); err != nil {
			return err
		}
		if !wordPattern.MatchString(k.Release) || !wordPattern.MatchString(k.Package) {
			return fmt.Errorf("kernel %s: release %q, package %q", k.Name, k.Release, k.Package)
		}
	}
	for _, i := range s.Images {
		if err := name("image", i.Name); err != nil {
			return err
		}
	}
	for _, p := range s.Programs {
		if err := name("program", p.Name); err != nil {
			return err
		}
		if err := p.check(); err != nil {
			return fmt.Errorf("program %s: %w", p.Name, err)
		}
	}
	return nil
}

func (p Program) check() error {
	u, err := url.Parse(p.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("url %q is no https address", p.URL)
	}
	if !digestPattern.MatchString(p.SHA256) || !digestPattern.MatchString(p.MemberSHA256) {
		return errors.New("a sha256 is not 64 hexadecimal digits")
	}
	if p.Member == "" || path.IsAbs(p.Member) || path.Clean(p.Member) != p.Member || p.Member == ".." || strings.HasPrefix(p.Member, "../") {
		return fmt.Errorf("member %q is no clean path", p.Member)
	}
	return nil
}
