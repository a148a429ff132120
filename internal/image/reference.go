package image

import (
	"regexp"
	"strings"

	"banger/internal/errs"
)

// Reference means an image: by a name, by a digest, or by a name that the image with that
// digest has or had.
type Reference struct {
	// Name is repository:tag, or the repository alone: then the tag is "latest", which is
	// never written out. Empty where there is only a digest.
	Name string
	// Digest is "sha256:" and at least shortDigest hexadecimal digits, or empty.
	Digest string
}

const (
	latest    = ":latest"
	digestIs  = "sha256:"
	maxName   = 255 // bytes of a name, as registries have it
	nameHint  = "write it as NAME, NAME:TAG or NAME@sha256:DIGEST, with a-z, 0-9, and . _ - / in between"
	shortHint = "give at least 12 hexadecimal digits after sha256:"

	// shortDigest is how many hexadecimal digits of a digest are shown, and the least that
	// mean one.
	shortDigest = 12
)

var (
	hostPattern      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?$`)
	componentPattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`)
	tagPattern       = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	hexDigestPattern = regexp.MustCompile(`^[0-9a-f]{1,64}$`)
)

// ParseReference reads what a person calls an image. errs.Invalid
func ParseReference(s string) (Reference, error) {
	if strings.HasPrefix(s, digestIs) {
		return withDigest("", s)
	}
	name, digest, pinned := strings.Cut(s, "@")
	name, err := ParseName(name)
	if err != nil || !pinned {
		return Reference{Name: name}, err
	}
	return withDigest(name, digest)
}

func withDigest(name, digest string) (Reference, error) {
	hex, ok := strings.CutPrefix(digest, digestIs)
	if !ok || !hexDigestPattern.MatchString(hex) {
		return Reference{}, errs.New(errs.Invalid, "%q is no digest of an image", digest).Try("write it as sha256: and up to 64 hexadecimal digits")
	}
	if len(hex) < shortDigest {
		return Reference{}, errs.New(errs.Invalid, "the digest %q is too short to mean one image", digest).Try(shortHint)
	}
	return Reference{name, digest}, nil
}

// ParseName reads the name that an image is to have: repository[:tag], where the first
// part of a repository with slashes may be the host of a registry. It returns the name
// without a tag that says "latest". errs.Invalid
func ParseName(s string) (string, error) {
	repository, tag := splitTag(s)
	bad := func(why string) error {
		return errs.New(errs.Invalid, "no image can be called %q: %s", s, why).Try(nameHint)
	}
	switch {
	case s == "":
		return "", bad("a name has at least one letter or digit")
	case len(s) > maxName:
		return "", bad("a name has at most 255 bytes")
	case strings.ContainsRune(s, '@'):
		return "", bad("only a digest, which follows a name, has an @")
	case tag != "" && !tagPattern.MatchString(tag[1:]):
		return "", bad("its tag is none")
	}
	parts := strings.Split(repository, "/")
	for i, p := range parts {
		if i == 0 && len(parts) > 1 && isHost(p) {
			continue
		}
		if !componentPattern.MatchString(p) {
			return "", bad("it has other characters than a-z and 0-9, or . _ - not in between")
		}
	}
	if repository+":" == digestIs {
		return "", bad("that is how a digest begins")
	}
	if tag == latest {
		return repository, nil
	}
	return s, nil
}

// isHost tells the host of a registry from the first part of a path, as registries' clients do.
func isHost(s string) bool {
	return (strings.ContainsAny(s, ".:") || s == "localhost") && hostPattern.MatchString(s)
}

// splitTag cuts a name into repository and tag; the tag begins with its colon, or is "".
func splitTag(name string) (repository, tag string) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.ContainsRune(name[i:], '/') { // a host's port
		return name, ""
	}
	return name[:i], name[i:]
}

// matches tells whether an image with this digest that is called by these names is meant.
func (r Reference) matches(digest string, names []string) bool {
	if r.Digest != "" && !strings.HasPrefix(digest, r.Digest) {
		return false
	}
	if r.Name == "" {
		return true
	}
	repository, _ := splitTag(r.Name)
	for _, n := range names {
		if of, _ := splitTag(n); of == repository && (r.Digest != "" || n == r.Name) {
			return true
		}
	}
	return false
}

// String writes the reference as ParseReference reads it.
func (r Reference) String() string {
	switch {
	case r.Digest == "":
		return r.Name
	case r.Name == "":
		return r.Digest
	}
	return r.Name + "@" + r.Digest
}
