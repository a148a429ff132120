package apt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"banger/internal/errs"
	"banger/internal/host"
)

// Etc is where apt's configuration lives.
const Etc = "/etc/apt"

// Options returns the host's settings of how to reach mirrors and of what to check on
// them (proxies, certificates, retries), as lines of apt.conf.
func Options(ctx context.Context) ([]string, error) {
	out, err := host.Output(ctx, host.Command{Path: "apt-config", Args: []string{"dump", "--no-empty"}})
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		for _, prefix := range []string{"Acquire::http::", "Acquire::https::", "Acquire::Retries", "Acquire::Check-Valid-Until", "Acquire::Check-Date"} {
			if strings.HasPrefix(strings.ToLower(line), strings.ToLower(prefix)) {
				lines = append(lines, line)
			}
		}
	}
	return lines, nil
}

// WithChecks returns sources with what the host's settings say about the age of a mirror
// (a frozen one is out of date on purpose), so that they also hold elsewhere.
func WithChecks(sources []Source, options []string) []Source {
	out := slices.Clone(sources)
	for _, line := range options {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, ";"), " ")
		name = strings.ToLower(strings.TrimPrefix(name, "Acquire::"))
		if (name != "check-valid-until" && name != "check-date") || !isNo(strings.Trim(value, `"`)) {
			continue
		}
		for i := range out {
			if o := name + "=no"; !slices.Contains(out[i].Options, o) {
				out[i].Options = append(slices.Clone(out[i].Options), o)
			}
		}
	}
	return out
}

// Private is an apt with lists and a cache of its own.
type Private struct {
	dir  string
	args []string
}

// Open makes a private apt in the empty directory dir and fetches the sources' lists.
func Open(ctx context.Context, dir string, sources []Source) (*Private, error) {
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	list := ""
	for _, s := range sources {
		list += s.Line() + "\n"
	}
	for name, content := range map[string]string{"sources.list": list, "state/status": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	p := &Private{dir: dir}
	for _, o := range []string{
		"Dir::State=" + filepath.Join(dir, "state"),
		"Dir::State::status=" + filepath.Join(dir, "state/status"),
		"Dir::Cache=" + filepath.Join(dir, "cache"),
		"Dir::Etc::sourcelist=" + filepath.Join(dir, "sources.list"),
		"Dir::Etc::sourceparts=-", // the third parties' sources
		"Dir::Etc::preferencesparts=-",
		"APT::Sandbox::User=root", // the directory is not for the user _apt to enter
		"APT::Architecture=amd64",
		"Acquire::Languages=none",
		"APT::Update::Error-Mode=any", // a mirror that does not answer is an error
	} {
		p.args = append(p.args, "-o", o)
	}
	if _, err := p.run(ctx, "", "apt-get", "update", "-q"); err != nil {
		return nil, errs.New(errs.Unavailable, "can't fetch Debian's package lists").Because(err).
			Try("check that `apt-get update` works on this host")
	}
	return p, nil
}

var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*$`)

// Package is a package that apt fetched and verified.
type Package struct {
	Name, Version string
	Path          string // of the .deb
}

// Download fetches the package name or, where it depends on one whose name begins with
// prefix, that one: a metapackage's current real one. An empty prefix means name itself.
func (p *Private) Download(ctx context.Context, name, prefix string) (Package, error) {
	if !packageName.MatchString(name) {
		return Package{}, errs.New(errs.Invalid, "%q is no name of a package", name)
	}
	about, err := p.run(ctx, "", "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return Package{}, errs.New(errs.Unavailable, "Debian has no package %s", name).Because(err)
	}
	if prefix != "" {
		for dep := range strings.SplitSeq(field(about, "Depends"), ",") {
			dep, _, _ = strings.Cut(strings.TrimSpace(dep), " ") // a version in parentheses
			if strings.HasPrefix(dep, prefix) && dep != name {
				return p.Download(ctx, dep, "")
			}
		}
	}
	pkg := Package{Name: name, Version: field(about, "Version")}
	dir := filepath.Join(p.dir, "debs", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Package{}, err
	}
	if _, err := p.run(ctx, dir, "apt-get", "download", "-q", name); err != nil {
		return Package{}, errs.New(errs.Unavailable, "can't download the package %s", name).Because(err)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return Package{}, fmt.Errorf("apt-get download %s left %d packages: %w", name, len(debs), err)
	}
	pkg.Path = debs[0]
	return pkg, nil
}

// Upgrade is a package that is installed somewhere, and the newer version that the sources have.
type Upgrade struct{ Name, Has, Now string }

// Upgrades tells which of the installed packages, versions by name, the sources have in a
// newer version; sorted by name.
func (p *Private) Upgrades(ctx context.Context, installed map[string]string) ([]Upgrade, error) {
	names := slices.Sorted(maps.Keys(installed))
	status := ""
	for _, name := range names {
		if !packageName.MatchString(name) || strings.ContainsAny(installed[name], " \t\n") {
			return nil, errs.New(errs.Invalid, "%q %q is no package and its version", name, installed[name])
		}
		status += fmt.Sprintf("Package: %s\nStatus: install ok installed\nMaintainer: -\nArchitecture: amd64\nVersion: %s\nDescription: -\n\n", name, installed[name])
	}
	if err := os.WriteFile(filepath.Join(p.dir, "state/status"), []byte(status), 0o644); err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, nil
	}
	out, err := p.run(ctx, "", "apt-cache", append([]string{"policy"}, names...)...)
	if err != nil {
		return nil, err
	}
	return parsePolicy(out, installed), nil
}

// parsePolicy reads what apt-cache policy says: a package's name and colon, and below it,
// indented, the version installed and the one that apt would install.
func parsePolicy(text string, installed map[string]string) []Upgrade {
	var found []Upgrade
	name := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if n, ok := strings.CutSuffix(line, ":"); ok && !strings.HasPrefix(line, " ") {
			name, _, _ = strings.Cut(n, ":") // a foreign architecture's
		}
		now, ok := strings.CutPrefix(line, "  Candidate: ")
		if has := installed[name]; ok && has != "" && now != has && now != "(none)" {
			found = append(found, Upgrade{name, has, now})
		}
	}
	slices.SortFunc(found, func(a, b Upgrade) int { return strings.Compare(a.Name, b.Name) })
	return found
}

// run runs one of apt's programs in dir and returns what it wrote to stdout.
func (p *Private) run(ctx context.Context, dir, program string, args ...string) (string, error) {
	out, err := host.Output(ctx, host.Command{Path: program, Args: append(slices.Clone(p.args), args...), Dir: dir, Env: Env()})
	return string(out), Words(err)
}

// Env is the environment in which apt speaks plain English and asks nothing.
func Env() []string {
	return append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "DEBCONF_NONINTERACTIVE_SEEN=true")
}

// field returns the first value of a field in a stanza of apt's.
func field(stanza, name string) string {
	for line := range strings.Lines(stanza) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Words makes the error of a program of apt's family into what it said: its lines marked
// as errors or, if there are none, the last.
func Words(err error) error {
	exit, ok := errors.AsType[*host.ExitError](err)
	if !ok {
		return err
	}
	var said []string
	for line := range strings.Lines(exit.Tail) {
		line, ok := strings.CutPrefix(strings.TrimSpace(line), "E: ")
		// mmdebstrap adds which of its commands failed, at length.
		noise := strings.HasSuffix(line, " failed") || strings.HasSuffix(line, "failed to run")
		if ok && !noise && !slices.Contains(said, line) {
			said = append(said, line)
		}
	}
	if len(said) == 0 {
		return err
	}
	return fmt.Errorf("%s said: %s", exit.Program, strings.Join(said, "; "))
}
