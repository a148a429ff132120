package image

import (
	"strings"
	"testing"

	"banger/internal/errs"
)

const minimal = `
name = "x"
distribution = "debian"
release = "bookworm"
variant = "minbase"
size = "64M"
journal = "4M"
`

func TestBuiltIn(t *testing.T) {
	hashes := map[string]bool{}
	for _, name := range []string{"tiny", "debian", "debian-docker", "lab"} {
		m, err := BuiltIn(name)
		if err != nil {
			t.Fatal(err)
		}
		if m.Name != name {
			t.Errorf("%s calls itself %s", name, m.Name)
		}
		hashes[m.Hash()] = true
	}
	if len(hashes) != 4 {
		t.Errorf("hashes: %v", hashes)
	}
	for _, name := range []string{"", "nonesuch", "../manifest", "tiny.toml"} {
		if _, err := BuiltIn(name); errs.KindOf(err) != errs.NotFound {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestParseManifest(t *testing.T) {
	m, err := ParseManifest([]byte(minimal + `
packages = ["make", "g++", "libc6-dev"]
init = "/sbin/init"
[[dir]]
path = "/srv/www"
mode = "2775"
[[file]]
path = "/etc/motd"
content = "hello\n"
[[link]]
path = "/srv/w"
target = "www"
`))
	if err != nil {
		t.Fatal(err)
	}
	if m.Bytes != 64<<20 || m.JournalBytes != 4<<20 || len(m.Packages) != 3 || m.Init != "/sbin/init" {
		t.Errorf("parsed %+v", m)
	}
	want := []Entry{{Path: "/srv/www", Mode: 0o2775, Dir: true}, {Path: "/etc/motd", Mode: 0o644, Content: "hello\n"}, {Path: "/srv/w", Mode: 0o777, Link: "www"}}
	for i, e := range m.Entries {
		if e != want[i] {
			t.Errorf("entry %d is %+v, want %+v", i, e, want[i])
		}
	}
}

func TestParseManifestRefuses(t *testing.T) {
	replace := func(old, new string) string { return strings.Replace(minimal, old, new, 1) }
	for _, c := range []struct{ text, want string }{
		{"name = ", "line 1"},
		{minimal + `colour = "red"`, "line 8: unknown key colour"},
		{minimal + "[[file]]\npath = \"/a\"\nowner = \"me\"", "unknown key file.owner"},
		{replace(`"debian"`, `"slackware"`), "only debian can be built"},
		{replace(`"bookworm"`, `"../x"`), "no code name"},
		{replace(`"bookworm"`, `"--x"`), "no code name"},
		{replace(`"minbase"`, `"buildd,x"`), "variant"},
		{replace(`"64M"`, `"64K"`), "whole MiB"},
		{replace(`"64M"`, `"many"`), "whole MiB"},
		{replace(`"64M"`, `"8M"`), "not between 16M and 1T"},
		{replace(`"64M"`, `"2T"`), "not between 16M and 1T"},
		{replace(`"4M"`, `"40M"`), "quarter of the size"},
		{minimal + `packages = ["a b"]`, "no name of a package"},
		{minimal + `packages = ["--aptopt=x"]`, "no name of a package"},
		{minimal + `packages = ["a,b"]`, "no name of a package"},
		{minimal + `packages = ["./evil.deb"]`, "no name of a package"},
		{minimal + `init = "sbin/init"`, "clean absolute path"},
		{minimal + `drop = ["/etc/../usr"]`, "clean absolute path"},
		{minimal + `keep = ["/"]`, "clean absolute path"},
		{minimal + "[[file]]\npath = \"etc/motd\"", "clean absolute path"},
		{minimal + "[[file]]\npath = \"/etc/motd\"\nmode = \"rw\"", "octal"},
		{minimal + "[[file]]\npath = \"/etc/motd\"\nmode = \"17777\"", "octal"},
		{minimal + "[[file]]\npath = \"/etc/motd\"\n[[link]]\npath = \"/etc/motd\"\ntarget = \"x\"", "there twice"},
		{minimal + "[[link]]\npath = \"/etc/motd\"", "no target"},
	} {
		_, err := ParseManifest([]byte(c.text))
		if errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\ngave %v, want %q", c.text, err, c.want)
		}
	}
}

func FuzzManifest(f *testing.F) {
	for _, name := range []string{"tiny", "debian", "debian-docker", "lab"} {
		b, err := manifests.ReadFile("manifests/" + name + ".toml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(minimal))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := ParseManifest(text)
		if err != nil {
			return
		}
		for _, p := range m.Packages {
			if strings.HasPrefix(p, "-") || strings.ContainsAny(p, ", /=") {
				t.Errorf("package %q", p)
			}
		}
		for _, e := range m.Entries {
			if err := checkPath(e.Path); err != nil {
				t.Error(err)
			}
		}
		if m.Bytes < minBytes || m.Bytes > maxBytes || m.Hash() == "" {
			t.Errorf("accepted %+v", m)
		}
	})
}
