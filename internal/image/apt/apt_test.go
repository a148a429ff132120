package apt

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/errs"
	"banger/internal/host"
)

const stockSources = `# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`

func TestHostSources(t *testing.T) {
	const d = "http://mirror.example/debian"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []string // "uri suite options"
	}{
		{"deb822", map[string]string{"sources.list.d/debian.sources": stockSources},
			[]string{d + " bookworm", d + " bookworm-updates", d + "-security bookworm-security"}},
		{"one line each", map[string]string{"sources.list": "deb http://mirror.example/debian/ bookworm main non-free # all\ndeb-src http://mirror.example/debian bookworm main\n" +
			"deb\t[ arch=amd64,arm64 check-valid-until=no ] http://mirror.example/debian-security bookworm-security/ main\n"},
			[]string{d + " bookworm", d + "-security bookworm-security check-valid-until=no"}},
		{"twice", map[string]string{"sources.list": "deb " + d + " bookworm main\n", "sources.list.d/debian.sources": stockSources},
			[]string{d + " bookworm", d + " bookworm-updates", d + "-security bookworm-security"}},
		{"third parties", map[string]string{
			"sources.list":                   "deb " + d + " bookworm main\n",
			"sources.list.d/docker.list":     "deb [signed-by=/etc/apt/keyrings/docker.asc] https://docker.example/linux/debian bookworm stable\n",
			"sources.list.d/pgdg.list":       "deb https://pg.example/debian bookworm-pgdg main\n",
			"sources.list.d/keyed.list":      "deb [signed-by=/etc/apt/keyrings/other.gpg] https://other.example/debian bookworm main\n",
			"sources.list.d/unkeyed.list":    "deb https://other.example/tools bookworm main\n",
			"sources.list.d/ppa.sources":     "Types: deb\nURIs: https://ppa.example/debian\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----\n",
			"sources.list.d/notes.txt":       "deb http://notes.example/debian bookworm main\n",
			"sources.list.d/cdrom.list":      "deb cdrom:[Debian_12]/ bookworm main\n",
			"sources.list.d/other-arch.list": "deb [arch=arm64] http://arm.example/debian bookworm main\n",
		}, []string{d + " bookworm"}},
		{"disabled", map[string]string{"sources.list": "deb " + d + " bookworm main\n#deb http://off.example/debian bookworm main\n",
			"sources.list.d/off.sources": "Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n"},
			[]string{d + " bookworm"}},
		{"a directory", map[string]string{"sources.list": "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] file:/srv/mirror bookworm main\n"},
			[]string{"file:/srv/mirror bookworm"}},
		{"frozen", map[string]string{"sources.list.d/f.sources": "types: deb\nuris: " + d + "\nsuites: bookworm\ncomponents: main\nCheck-Valid-Until: false\nCheck-Date: no\n"},
			[]string{d + " bookworm check-valid-until=no check-date=no"}},
		{"malformed lines around a good one", map[string]string{"sources.list": "deb\ndeb [x http://a/debian bookworm main\ndeb http://a/debian\n\x00\xff\ndeb " + d + " bookworm main\n"},
			[]string{d + " bookworm"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			etc := t.TempDir()
			for name, content := range c.files {
				path := filepath.Join(etc, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			sources, err := HostSources(etc, "bookworm")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range sources {
				got = append(got, strings.Join(append([]string{s.URI, s.Suite}, s.Options...), " "))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestNoMirror(t *testing.T) {
	etc := t.TempDir()
	if err := os.WriteFile(filepath.Join(etc, "sources.list"), []byte("deb http://mirror.example/debian-security bookworm-security main\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := HostSources(etc, "bookworm")
	if errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "no mirror of Debian bookworm") || !strings.Contains(errs.HintOf(err), etc) {
		t.Errorf("only security updates: %v", err)
	}
	if _, err := HostSources(filepath.Join(etc, "nothing"), "bookworm"); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("no configuration: %v", err)
	}
}

func TestWithChecks(t *testing.T) {
	sources := []Source{{URI: "http://mirror.example/debian", Suite: "bookworm", Component: "main", Options: []string{"check-date=no"}}}
	got := WithChecks(sources, []string{`Acquire::Check-Valid-Until "false";`, `Acquire::Check-Date "0";`, `Acquire::Retries "3";`})
	want := "deb [signed-by=" + Keyring + " check-date=no check-valid-until=no] http://mirror.example/debian bookworm main"
	if got[0].Line() != want {
		t.Errorf("got  %s\nwant %s", got[0].Line(), want)
	}
	if len(sources[0].Options) != 1 {
		t.Error("the sources given were changed")
	}
	if got := WithChecks(sources, []string{`Acquire::Check-Valid-Until "true";`}); len(got[0].Options) != 1 {
		t.Errorf("a check that is on: %v", got[0].Options)
	}
}

func TestWords(t *testing.T) {
	err := Words(&host.ExitError{Program: "mmdebstrap", Code: 25, Tail: "I: running apt-get\nE: Unable to locate package nonesuch\nW: hm\nE: Unable to locate package nonesuch\nE: apt-get -oX install failed\nE: mmdebstrap failed to run\n"})
	if want := "mmdebstrap said: Unable to locate package nonesuch"; err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	plain := &host.ExitError{Program: "x", Code: 1, Tail: "oh no\n"}
	if err := Words(plain); err != error(plain) {
		t.Errorf("without marked lines: %v", err)
	}
	if Words(nil) != nil {
		t.Error("nil became an error")
	}
}

// FuzzSources checks that nothing in a file of sources breaks out of the lines made of it.
func FuzzSources(f *testing.F) {
	f.Add(stockSources)
	f.Add("deb [arch=amd64 signed-by=/x/debian-archive-keyring.gpg] file:/srv/debian bookworm main contrib\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, e := range slices.Concat(parseList(text), parseDeb822(text)) {
			for _, s := range e.serve("bookworm") {
				line := s.Line()
				if strings.ContainsAny(line, "\n\r\x00") || strings.Count(line, "[") != 1 || strings.Count(line, "]") != 1 || len(strings.Fields(line)) < 5 {
					t.Errorf("line %q", line)
				}
			}
		}
	})
}

// FuzzAnswers reads what programs of apt's might say: of packages that are installed there is another
// version at most, each once for every time that it is said, and an error says something.
func FuzzAnswers(f *testing.F) {
	f.Add("zsh:\n  Installed: 5.9-4\n  Candidate: 5.9-5\n  Version table:\n")
	f.Add("zsh:i386:\n  Candidate: (none)\nE: no\nE: no\nPackage: zsh\nDepends: libc6 (>= 2.36), x\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, u := range parsePolicy(text, map[string]string{"zsh": "5.9-4"}) {
			if u.Name != "zsh" || u.Has != "5.9-4" || u.Now == "" || u.Now == u.Has || strings.Contains(u.Now, "\n") {
				t.Errorf("%+v", u)
			}
		}
		if v := field(text, "Depends"); strings.ContainsAny(v, "\n") || v != strings.TrimSpace(v) {
			t.Errorf("the field is %q", v)
		}
		if err := Words(&host.ExitError{Program: "apt-get", Code: 100, Tail: text}); err == nil || err.Error() == "" {
			t.Error("an error says nothing")
		}
	})
}
