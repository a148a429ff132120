package image

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/errs"
	"banger/internal/host"
)

// repository is an apt repository of one package, in a directory, signed by a key of its own.
type repository struct {
	t       *testing.T
	dir     string
	home    string // of gpg
	keyring string
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	for _, program := range []string{"gpg", "dpkg-deb"} {
		if _, err := host.LookPath(program); err != nil {
			t.Skipf("SKIP: this host has no %s", program)
		}
	}
	home, err := os.MkdirTemp("", "gpg") // a short path: gpg's agent has a socket in it
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := &repository{t, filepath.Join(dir, "debian"), home, filepath.Join(dir, "debian-archive-test.gpg")}
	t.Cleanup(func() {
		r.run("gpgconf", "--homedir", home, "--kill", "all")
		os.RemoveAll(home)
	})
	r.gpg("--passphrase", "", "--quick-generate-key", "test", "ed25519", "sign", "never")
	r.gpg("--output", r.keyring, "--export")
	return r
}

func (r *repository) run(program string, args ...string) {
	r.t.Helper()
	if err := host.Run(r.t.Context(), host.Command{Path: program, Args: args}); err != nil && r.t.Context().Err() == nil {
		r.t.Fatal(err)
	}
}

func (r *repository) gpg(args ...string) {
	r.t.Helper()
	r.run("gpg", append([]string{"--homedir", r.home, "--batch", "--pinentry-mode", "loopback"}, args...)...)
}

func (r *repository) write(name, content string) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// publish makes version the only one of the package sample.
func (r *repository) publish(version string) {
	r.t.Helper()
	tree := r.t.TempDir()
	if err := os.Chmod(tree, 0o755); err != nil {
		r.t.Fatal(err)
	}
	for name, content := range map[string]string{
		"DEBIAN/control":   "Package: sample\nVersion: " + version + "\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: -\n",
		"usr/share/sample": version + "\n",
	} {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	r.write("pool/.keep", "")
	deb := filepath.Join(r.dir, "pool", "sample_"+version+"_all.deb")
	r.run("dpkg-deb", "--root-owner-group", "--build", tree, deb)
	b, err := os.ReadFile(deb)
	if err != nil {
		r.t.Fatal(err)
	}
	packages := fmt.Sprintf("Package: sample\nVersion: %s\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nFilename: pool/%s\nSize: %d\nSHA256: %x\nDescription: -\n\n",
		version, filepath.Base(deb), len(b), sha256.Sum256(b))
	r.write("dists/bookworm/main/binary-amd64/Packages", packages)
	r.write("dists/bookworm/Release", fmt.Sprintf("Origin: Test\nSuite: stable\nCodename: bookworm\nDate: Mon, 02 Nov 2026 00:00:00 UTC\nArchitectures: amd64\nComponents: main\nSHA256:\n %x %d main/binary-amd64/Packages\n",
		sha256.Sum256([]byte(packages)), len(packages)))
	release := filepath.Join(r.dir, "dists/bookworm")
	r.gpg("--yes", "--clearsign", "--output", filepath.Join(release, "InRelease"), filepath.Join(release, "Release"))
}

// etc returns a configuration of apt that has this repository for Debian's.
func (r *repository) etc() string {
	r.t.Helper()
	dir := r.t.TempDir()
	line := fmt.Sprintf("deb [signed-by=%s] file:%s bookworm main\n", r.keyring, r.dir)
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(line), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return dir
}

// TestStale follows an image through a change of its manifest and a new version of its
// package.
func TestStale(t *testing.T) {
	needBuild(t)
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root can show the build a mirror in a directory of a test's")
	}
	repo := newRepository(t)
	repo.publish("1.0")
	s, etc := emptyStore(t), repo.etc()
	manifest := filepath.Join(t.TempDir(), "it's.toml")
	write := func(more string) {
		t.Helper()
		text := "distribution = \"debian\"\nrelease = \"bookworm\"\nvariant = \"extract\"\nsize = \"16M\"\njournal = \"4M\"\npackages = [\"sample\"]\n" +
			"[[file]]\npath = \"/etc/motd\"\nsource = \"motd\"\n" + more
		if err := os.WriteFile(manifest, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	motd := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(filepath.Dir(manifest), "motd"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := func(refresh bool) Image {
		t.Helper()
		m, err := ReadManifest(manifest)
		if err != nil {
			t.Fatal(err)
		}
		i, err := s.Build(t.Context(), "x:1", m, BuildOptions{Etc: etc, Refresh: refresh}, quiet)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	is := func(what, stale, rebuild string) Image {
		t.Helper()
		i, err := s.Get("x:1")
		if err != nil || !strings.Contains(i.Stale, stale) || (stale == "") != (i.Stale == "") {
			t.Errorf("%s: stale is %q, %v", what, i.Stale, err)
		}
		if stale != "" && i.RebuildCommand() != rebuild {
			t.Errorf("%s: %s", what, i.RebuildCommand())
		}
		return i
	}
	plain := "banger image build x:1 -f '" + strings.ReplaceAll(manifest, "'", `'\''`) + "'"

	write("")
	motd("hello")
	first := build(false)
	if is("built", "", ""); !slices.Equal(first.Packages, []Package{{"sample", "1.0"}}) || debugfs(t, first.Path, "cat /etc/motd") != "hello" {
		t.Errorf("built %+v", first)
	}
	write("# changed\n")
	is("manifest changed", "manifest has changed", plain)
	build(false)
	is("built again", "", "")
	motd("goodbye")
	is("a file changed", "manifest has changed", plain)
	second := build(false)
	if is("built again", "", ""); debugfs(t, second.Path, "cat /etc/motd") != "goodbye" {
		t.Error("the file is the old one")
	}
	if err := os.Rename(manifest, manifest+".away"); err != nil {
		t.Fatal(err)
	}
	is("manifest gone", "", "")
	if err := os.Rename(manifest+".away", manifest); err != nil {
		t.Fatal(err)
	}

	if newer, err := s.Check(t.Context(), "x:1", etc, quiet); err != nil || len(newer) != 0 {
		t.Errorf("nothing newer: %v, %v", newer, err)
	}
	repo.publish("1.1")
	newer, err := s.Check(t.Context(), "x:1", etc, quiet)
	if err != nil || !slices.Equal(newer, []Newer{{"sample", "1.0", "1.1"}}) {
		t.Errorf("newer are %v, %v", newer, err)
	}
	is("newer packages", "1 of its packages", strings.Replace(plain, "build", "build --refresh", 1))
	if again := build(false); again.Digest != second.Digest {
		t.Error("built without a refresh it changed")
	}
	third := build(true)
	if is("refreshed", "", ""); !slices.Equal(third.Packages, []Package{{"sample", "1.1"}}) || third.Digest == second.Digest {
		t.Errorf("refreshed it is %+v", third)
	}
	if got, err := s.Get(first.Digest); err != nil || debugfs(t, got.Path, "cat /etc/motd") != "hello" {
		t.Errorf("the first generation: %+v, %v", got, err)
	}
	if left, err := s.Leftovers(); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestCheckRefuses(t *testing.T) {
	s := library(t)
	commit(t, s, "app", "x")
	if _, err := s.Check(t.Context(), "app", t.TempDir(), quiet); errs.KindOf(err) != errs.Invalid {
		t.Errorf("an image without packages: %v", err)
	}
	if _, err := s.Check(t.Context(), "nonesuch", t.TempDir(), quiet); errs.KindOf(err) != errs.NotFound {
		t.Errorf("no image: %v", err)
	}
}

func TestReadManifestRefuses(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.toml")
	if err := os.WriteFile(bad, []byte(minimal+"[[file]]\npath = \"/x\"\nsource = \"nonesuch\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for path, kind := range map[string]errs.Kind{"relative": errs.Invalid, filepath.Join(dir, "nonesuch"): errs.NotFound, dir: errs.Invalid, "/dev/zero": errs.Invalid, bad: errs.Invalid} {
		if _, err := ReadManifest(path); errs.KindOf(err) != kind {
			t.Errorf("%s: %v", path, err)
		}
	}
}
