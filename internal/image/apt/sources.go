// Package apt owns what banger asks of the host's apt: which mirrors of Debian it trusts,
// and packages from them, fetched and verified by apt itself in directories of its own.
// The host's package lists, cache and installed packages are neither used nor changed.
package apt

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"banger/internal/errs"
)

// Keyring is Debian's own, from the package debian-archive-keyring. Whatever is fetched
// must be signed by it, or by the one that the host's sources name for a mirror.
const Keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Source is one archive suite.
type Source struct {
	URI       string
	Suite     string
	Component string
	Options   []string // "name=value", beyond the keyring
	Keyring   string   // a file of this host's, instead of Debian's own
}

// Line gives the source as a line of sources.list.
func (s Source) Line() string {
	options := append([]string{"signed-by=" + cmp.Or(s.Keyring, Keyring)}, s.Options...)
	return fmt.Sprintf("deb [%s] %s %s %s", strings.Join(options, " "), s.URI, s.Suite, s.Component)
}

// Local tells that the archive is a directory of this host, which a guest can't reach.
func (s Source) Local() bool {
	return strings.HasPrefix(s.URI, "file:") || strings.HasPrefix(s.URI, "copy:")
}

// entry is what a stanza or line of the host's sources says.
type entry struct {
	types, uris, suites, components []string
	signedBy                        string
	archs                           []string
	disabled                        bool
	options                         []string // those that concern how the mirror is checked
}

// HostSources returns the sources for component main of a Debian release, its updates and
// its security updates, as the apt configuration in etc (/etc/apt) has them. Third-party
// archives are left out. errs.Unavailable if none serves the release.
func HostSources(etc, release string) ([]Source, error) {
	files := []string{filepath.Join(etc, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		found, err := filepath.Glob(filepath.Join(etc, "sources.list.d", pattern))
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	var out []Source
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errs.New(errs.Unavailable, "can't read the host's apt sources").Because(err)
		}
		parse := parseList
		if strings.HasSuffix(file, ".sources") {
			parse = parseDeb822
		}
		for _, e := range parse(string(b)) {
			for _, s := range e.serve(release) {
				if !slices.ContainsFunc(out, func(o Source) bool { return o.URI == s.URI && o.Suite == s.Suite }) {
					out = append(out, s)
				}
			}
		}
	}
	if !slices.ContainsFunc(out, func(s Source) bool { return s.Suite == release }) {
		return nil, errs.New(errs.Unavailable, "the host's apt sources have no mirror of Debian %s", release).
			Try("add one to %s, in component main and signed by %s", filepath.Join(etc, "sources.list.d"), Keyring)
	}
	return out, nil
}

// serve returns what the entry has of Debian's release in component main.
func (e entry) serve(release string) []Source {
	if e.disabled || !slices.Contains(e.types, "deb") || !slices.Contains(e.components, "main") ||
		(len(e.archs) > 0 && !slices.Contains(e.archs, "amd64")) {
		return nil
	}
	var out []Source
	keyring := ""
	if path.IsAbs(e.signedBy) && !strings.ContainsAny(e.signedBy, "[]\"'\\;,") && !strings.ContainsFunc(e.signedBy, isBlank) {
		keyring = e.signedBy
	}
	for _, uri := range e.uris {
		if !e.isDebian(uri) {
			continue
		}
		for _, suite := range e.suites {
			if s := strings.TrimSuffix(suite, "/"); s == release || s == release+"-updates" || s == release+"-security" {
				out = append(out, Source{URI: strings.TrimSuffix(uri, "/"), Suite: s, Component: "main", Options: e.options, Keyring: keyring})
			}
		}
	}
	return out
}

// isBlank tells what no word of a line can have.
func isBlank(r rune) bool { return r <= ' ' || unicode.IsSpace(r) || unicode.IsControl(r) }

// isDebian tells Debian's archive from others that use its suite names: it is signed by
// Debian's keyring or, where the entry names none, at a path called after Debian, as
// mirrors are by convention. If that is wrong, apt refuses the signature.
func (e entry) isDebian(uri string) bool {
	u, err := url.Parse(uri)
	if err != nil || strings.ContainsAny(uri, " \t[]\"'\\\n;") || !slices.Contains([]string{"http", "https", "file", "copy"}, u.Scheme) {
		return false
	}
	if e.signedBy != "" {
		return strings.HasPrefix(path.Base(e.signedBy), "debian-archive-")
	}
	return strings.HasPrefix(path.Base(strings.TrimSuffix(u.Path, "/")), "debian")
}

// parseList reads the one-line format of sources.list(5). Lines it can't read serve
// nothing: apt itself complains of them.
func parseList(text string) []entry {
	var out []entry
	scan := bufio.NewScanner(strings.NewReader(text))
	scan.Buffer(nil, len(text)+1)
	for scan.Scan() {
		line, _, _ := strings.Cut(scan.Text(), "#")
		typ, rest, ok := strings.Cut(strings.TrimSpace(strings.ReplaceAll(line, "\t", " ")), " ")
		if !ok {
			continue
		}
		e := entry{types: []string{typ}}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			for _, o := range strings.Fields(options) {
				name, value, _ := strings.Cut(o, "=")
				e.option(strings.ToLower(name), value)
			}
			rest = after
		}
		fields := strings.Fields(rest)
		if len(fields) < 2 {
			continue
		}
		e.uris, e.suites, e.components = fields[:1], fields[1:2], fields[2:]
		out = append(out, e)
	}
	return out
}

// parseDeb822 reads the stanzas of a .sources file.
func parseDeb822(text string) []entry {
	var out []entry
	var e *entry
	field := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "#"):
			continue
		case strings.TrimSpace(line) == "":
			e, field = nil, ""
			continue
		}
		value := strings.TrimSpace(line)
		if line[0] != ' ' && line[0] != '\t' {
			var ok bool
			field, value, ok = strings.Cut(line, ":")
			if !ok {
				field = ""
				continue
			}
			field = strings.ToLower(strings.TrimSpace(field))
		}
		if e == nil {
			out = append(out, entry{})
			e = &out[len(out)-1]
		}
		e.field(field, strings.TrimSpace(value))
	}
	return out
}

// field takes a field of a stanza, or a line that continues one.
func (e *entry) field(name, value string) {
	switch name {
	case "types":
		e.types = append(e.types, strings.Fields(value)...)
	case "uris":
		e.uris = append(e.uris, strings.Fields(value)...)
	case "suites":
		e.suites = append(e.suites, strings.Fields(value)...)
	case "components":
		e.components = append(e.components, strings.Fields(value)...)
	case "enabled":
		e.disabled = isNo(value)
	case "architectures":
		e.archs = append(e.archs, strings.Fields(value)...)
	default:
		e.option(name, value)
	}
}

func (e *entry) option(name, value string) {
	switch name {
	case "arch":
		e.archs = strings.Split(value, ",")
	case "signed-by":
		if e.signedBy == "" { // an embedded key goes on over many lines
			e.signedBy = value
		}
	case "check-valid-until", "check-date":
		if isNo(value) {
			e.options = append(e.options, name+"=no")
		}
	}
}

// isNo reads a boolean as apt does.
func isNo(value string) bool {
	return slices.Contains([]string{"no", "false", "0", "off", "without", "disable"}, strings.ToLower(value))
}
