package runtimedir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger"
	"banger/internal/errs"
)

// bundleIn makes a directory that looks like a bundle.
func bundleIn(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, recordFile), []byte(`{"schema":1}`), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestResolve(t *testing.T) {
	base := t.TempDir()
	configured := bundleIn(t, filepath.Join(base, "configured"))
	repo, checkout, prefix := filepath.Join(base, "repo"), filepath.Join(base, "checkout"), filepath.Join(base, "usr")
	bundleIn(t, filepath.Join(repo, "runtime"))
	bundleIn(t, filepath.Join(checkout, "runtime"))
	bundleIn(t, filepath.Join(prefix, "lib/banger"))
	all := Config{RuntimeDir: configured, RuntimeRule: "runtime_dir in the file", RepoRoot: repo}
	for _, c := range []struct {
		name       string
		cfg        Config
		exe        string
		checkout   string
		want, rule string
	}{
		{"runtime_dir first", all, prefix + "/bin/banger", checkout, configured, "runtime_dir in the file"},
		{"then repo_root", Config{RepoRoot: repo}, prefix + "/bin/banger", checkout, repo + "/runtime", "repo_root, which is there for old config files only: write runtime_dir instead"},
		{"then beside the program", Config{}, prefix + "/bin/banger", checkout, prefix + "/lib/banger", "beside the program"},
		{"then the checkout", Config{}, base + "/opt/bin/banger", checkout, checkout + "/runtime", "in the checkout the program was built in"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := Resolve(c.cfg, c.exe, c.checkout)
			if err != nil || b.Dir != c.want || b.Rule != c.rule {
				t.Errorf("got %+v, %v; want %s by %s", b, err, c.want, c.rule)
			}
			target, err := Target(c.cfg, c.exe, c.checkout)
			if err != nil || target != b {
				t.Errorf("a build would go to %+v, %v", target, err)
			}
		})
	}
}

func TestResolveNothing(t *testing.T) {
	base := t.TempDir()
	exe, checkout := filepath.Join(base, "bin/banger"), filepath.Join(base, "src")
	_, err := Resolve(Config{}, exe, checkout)
	if errs.KindOf(err) != errs.Unavailable || !strings.Contains(errs.HintOf(err), "banger runtime build") {
		t.Fatalf("no bundle: %v, hint %q", err, errs.HintOf(err))
	}
	for _, place := range []string{filepath.Join(base, "lib/banger"), filepath.Join(checkout, "runtime")} {
		if !strings.Contains(err.Error(), place) {
			t.Errorf("%v does not name %s", err, place)
		}
	}
	if target, err := Target(Config{}, exe, checkout); err != nil || target.Dir != filepath.Join(checkout, "runtime") {
		t.Errorf("a build would go to %+v, %v", target, err)
	}
	if target, err := Target(Config{}, exe, ""); err != nil || target.Dir != filepath.Join(base, "lib/banger") {
		t.Errorf("without a checkout a build would go to %+v, %v", target, err)
	}

	// A place that was named is not passed over for another.
	bundleIn(t, filepath.Join(checkout, "runtime"))
	gone := filepath.Join(base, "gone")
	env := Config{RuntimeDir: gone, RuntimeRule: "$BANGER_RUNTIME_DIR"}
	if _, err := Resolve(env, exe, checkout); errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), gone) || strings.Contains(err.Error(), checkout) {
		t.Errorf("a named place without a bundle: %v", err)
	}
	if target, err := Target(env, exe, checkout); err != nil || target.Dir != gone {
		t.Errorf("a build would go to %+v, %v", target, err)
	}
	if _, err := Target(Config{}, "", ""); errs.KindOf(err) != errs.Invalid {
		t.Errorf("no place at all: %v", err)
	}
}

func TestParseSpec(t *testing.T) {
	spec, err := ParseSpec(banger.RuntimeBundle)
	if err != nil {
		t.Fatal(err)
	}
	if len(spec.Kernels) != 1 || len(spec.Images) != 3 || len(spec.Programs) != 2 || spec.Kernels[0].Package != "linux-image-cloud-amd64" {
		t.Errorf("parsed %+v", spec)
	}
	good := string(banger.RuntimeBundle)
	for _, c := range []struct{ text, want string }{
		{"", "schema is 0"},
		{strings.Replace(good, "schema = 1", "schema = 2", 1), "schema is 2"},
		{good + "colour = \"red\"\n", "unknown key program.colour"},
		{good + "[[image]]\nname = \"tiny\"\nlicence = \"x\"\n", "there twice"},
		{good + "[[image]]\nname = \"../x\"\n", "no name of a image"},
		{strings.Replace(good, "https://", "http://", 1), "no https address"},
		{strings.Replace(good, `sha256 = "06`, `sha256 = "0x`, 1), "64 hexadecimal digits"},
		{strings.Replace(good, `licence = "GPL-2.0-only"`, "", 1), "no licence"},
		{strings.Replace(good, `path = "images/tiny"`, `path = "images/../tiny"`, 1), "must be images/tiny"},
		{strings.Replace(good, `mode = "0444"`, `mode = "4755"`, 1), "mode"},
		{good + "\n[archive]\nurl = \"ftp://x/y\"\n", "no https address"},
		{strings.Replace(good, `member = "`, `member = "../`, 1), "clean path"},
		{strings.Replace(good, `package = "`, `package = "--`, 1), "package"},
	} {
		if _, err := ParseSpec([]byte(c.text)); errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q…: %v, want %q", c.text, err, c.want)
		}
	}
}

// TestWanted asks for parts of the bundle as it is.
func TestWanted(t *testing.T) {
	spec, err := ParseSpec(banger.RuntimeBundle)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ only, want []string }{
		{nil, []string{"kernel/debian", "image/tiny", "image/debian", "program/firecracker"}},
		{[]string{"image"}, []string{"image/tiny", "image/debian"}},
		{[]string{"image/lab"}, []string{"image/lab"}},
		{[]string{"kernel", "image/tiny"}, []string{"kernel/debian", "image/tiny"}},
	} {
		var got []string
		for _, a := range artefacts(t.TempDir(), spec) {
			if a.wanted(c.only) {
				got = append(got, a.name)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("of %q it makes %q, want %q", c.only, got, c.want)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add(banger.RuntimeBundle)
	f.Fuzz(func(t *testing.T, text []byte) {
		spec, err := ParseSpec(text)
		if err != nil {
			return
		}
		for _, a := range artefacts("/bundle", spec) {
			if !filepath.IsLocal(a.Path) || filepath.Clean(a.Path) != a.Path {
				t.Errorf("artefact %q would be in %q", a.name, a.Path)
			}
		}
	})
}

// fake is an artefact that is a file.
func fake(dir, name string, made *int, fail error) artefact {
	return artefact{
		Artefact: Artefact{Path: name, Licence: "none"},
		name:     name,
		make: func(context.Context, Progress) error {
			*made++
			if fail != nil {
				return fail
			}
			if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, name, "file"), []byte("content"), 0o644)
		},
		source: func() (string, error) { return "a test", nil },
	}
}

func TestUpdate(t *testing.T) {
	dir := t.TempDir()
	made := 0
	a := fake(dir, "image/a", &made, nil)
	run := func(wanted, force bool) Record {
		t.Helper()
		r, err := ReadRecord(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.update(t.Context(), dir, &r, wanted, force, func(string, int64, int64) {}); err != nil {
			t.Fatal(err)
		}
		r, err = ReadRecord(dir)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := run(false, false); len(r.Artefacts) != 0 || made != 0 {
		t.Errorf("not wanted: made %d times, %+v", made, r)
	}
	r := run(true, false)
	want := FileRecord{Path: "image/a/file", Mode: "0644", Bytes: 7, SHA256: "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"}
	if made != 1 || len(r.Artefacts) != 1 || r.Artefacts[0].Source != "a test" || !slices.Equal(r.Artefacts[0].Files, []FileRecord{want}) {
		t.Errorf("made %d times, %+v", made, r)
	}
	if r := run(true, false); made != 1 || len(r.Artefacts) != 1 {
		t.Errorf("there already: made %d times, %+v", made, r)
	}
	if r := run(true, true); made != 2 || len(r.Artefacts) != 1 {
		t.Errorf("forced: made %d times, %+v", made, r)
	}
	// An interrupted build has made it and not written it down.
	if err := os.Remove(filepath.Join(dir, recordFile)); err != nil {
		t.Fatal(err)
	}
	if r := run(true, false); made != 2 || len(r.Artefacts) != 1 {
		t.Errorf("not written down: made %d times, %+v", made, r)
	}

	broken := errors.New("broken")
	var empty Record
	err := fake(dir, "image/b", &made, broken).update(t.Context(), dir, &empty, true, false, func(string, int64, int64) {})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "image/b") || len(empty.Artefacts) != 0 {
		t.Errorf("a failure: %v, %+v", err, empty)
	}
}

func TestBuildRefuses(t *testing.T) {
	dir := t.TempDir()
	quiet := func(string, int64, int64) {}
	if err := Build(t.Context(), dir, Options{Only: []string{"image/nonesuch"}}, quiet); errs.KindOf(err) != errs.NotFound || !strings.Contains(errs.HintOf(err), "image/tiny") {
		t.Errorf("an unknown artefact: %v", err)
	}
	unlock, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := Build(t.Context(), dir, Options{}, quiet); errs.KindOf(err) != errs.Busy {
		t.Errorf("two builds at once: %v", err)
	}
	unlock()
	if err := os.WriteFile(filepath.Join(dir, recordFile), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Build(t.Context(), dir, Options{}, quiet); err == nil || !strings.Contains(errs.HintOf(err), recordFile) {
		t.Errorf("a damaged record: %v", err)
	}
}
