package runtimedir

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/errs"
)

// made is when the bundles of the tests were made, if nothing else is said.
var made = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func quiet(string, int64, int64) {}

// content is what a file of a test's bundle has: incompressible bytes with a hole.
func content(seed byte, bytes int) []byte {
	b := make([]byte, bytes)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	clear(b[bytes/3 : bytes/2])
	return b
}

// writeBundle makes a bundle of these files, by their paths.
func writeBundle(t testing.TB, dir string, at time.Time, files map[string][]byte) Record {
	t.Helper()
	r := Record{Schema: schema, Banger: "test"}
	var paths []string
	for p := range files {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		sum := sha256.Sum256(files[p])
		path := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, files[p], 0o444); err != nil {
			t.Fatal(err)
		}
		r.Artefacts = append(r.Artefacts, ArtefactRecord{Name: "image/" + filepath.Base(filepath.Dir(p)), Source: "a test", BuiltAt: at,
			Files: []FileRecord{{Path: p, Mode: "0444", Bytes: int64(len(files[p])), SHA256: hex.EncodeToString(sum[:])}}})
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	return r
}

// sample is the files of a bundle; those of two seeds differ.
func sample(seed byte) map[string][]byte {
	return map[string][]byte{
		"kernels/debian/vmlinux":                              content(seed, 300<<10),
		fmt.Sprintf("images/tiny/rootfs-%02x.ext4", seed):     content(seed+1, 700<<10),
		"images/tiny/manifest.json":                           []byte(fmt.Sprintf(`{"seed":%d}`, seed)),
		"programs/firecracker/firecracker":                    content(seed+2, 64<<10),
		"images/empty/nothing":                                {},
		fmt.Sprintf("images/zeros/zeros-%02x.ext4", seed):     make([]byte, 3<<20),
		fmt.Sprintf("images/odd/odd-%02x", seed):              content(seed, 12345),
		fmt.Sprintf("images/with space/naïve-%02x.img", seed): content(seed, 10),
	}
}

// state is what a directory holds, by relative path, and whether that verifies.
func intact(t testing.TB, dir string, want map[string][]byte) {
	t.Helper()
	for p, b := range want {
		got, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: %d bytes, want %d: %v", p, len(got), len(b), err)
		}
	}
	sound(t, dir)
}

func sound(t testing.TB, dir string) {
	t.Helper()
	if err := Verify(context.Background(), dir, func(v Verdict) bool {
		if v.Problem != "" {
			t.Errorf("%s: %s", v.Path, v.Problem)
		}
		return true
	}); err != nil {
		t.Error(err)
	}
}

// beside lists what lies beside the bundle in dir, which must be alone there.
func beside(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(dir) {
			names = append(names, strings.TrimPrefix(e.Name(), filepath.Base(dir)))
		}
	}
	return names
}

func none(string) bool { return false }

func packBundle(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Package(t.Context(), dir, nil, none, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestVerify(t *testing.T) {
	dir := t.TempDir()
	writeBundle(t, dir, made, sample(1))
	intact(t, dir, sample(1))
	link := filepath.Join(t.TempDir(), "runtime")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	sound(t, link)
	vmlinux := filepath.Join(dir, "kernels/debian/vmlinux")
	alter := func(f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name       string
		do         func() error
		path, want string
		quick      bool // seen without reading
	}{
		{"extra", func() error { return os.WriteFile(filepath.Join(dir, "images/x"), nil, 0o644) }, "images/x", "no part of the bundle", true},
		{"bit", func() error { return flipBit(filepath.Join(dir, "images/odd/odd-01"), 777) }, "images/odd/odd-01", "has changed", false},
		{"mode", func() error { return os.Chmod(vmlinux, 0o777) }, "kernels/debian/vmlinux", "its mode is 0777", true},
		{"shorter", func() error { return os.Truncate(vmlinux, 5) }, "kernels/debian/vmlinux", "it has 5 bytes", true},
		{"link", func() error { os.Remove(vmlinux); return os.Symlink("/etc/passwd", vmlinux) }, "kernels/debian/vmlinux", "no regular file", true},
		{"missing", func() error { return os.Remove(vmlinux) }, "kernels/debian/vmlinux", "is missing", true},
	} {
		alter(c.do)
		var got []Verdict
		if err := Verify(t.Context(), dir, func(v Verdict) bool { got = append(got, v); return true }); err != nil {
			t.Fatal(err)
		}
		has := func(v Verdict) bool { return v.Path == c.path && strings.Contains(v.Problem, c.want) }
		if !slices.ContainsFunc(got, has) {
			t.Errorf("%s: got %+v", c.name, got)
		}
		quick, err := Quick(t.Context(), dir)
		if err != nil || slices.ContainsFunc(quick, has) != c.quick {
			t.Errorf("%s: a quick look tells %+v, %v", c.name, quick, err)
		}
	}
	if err := Verify(t.Context(), t.TempDir(), nil); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("no bundle: %v", err)
	}
}

func flipBit(path string, at int64) error {
	if err := os.Chmod(path, 0o644); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 1
	if _, err = f.WriteAt(b[:], at); err != nil {
		return err
	}
	return os.Chmod(path, 0o444)
}

func TestPackageIsReproducible(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	writeBundle(t, a, made, sample(1))
	writeBundle(t, b, made, sample(1))
	for p := range sample(1) { // times, owners and places of files do not matter
		if err := os.Chtimes(filepath.Join(b, p), made, made); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(packBundle(t, a), packBundle(t, b)) {
		t.Error("two archives of one bundle differ")
	}
}

func TestPackageChooses(t *testing.T) {
	dir := t.TempDir()
	r := writeBundle(t, dir, made, sample(1))
	r.Artefacts[0].Name = keptPrefix + "old" // of one file, as all of writeBundle's
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	unpacked := func(only []string, optional func(string) bool) (names []string) {
		t.Helper()
		var b bytes.Buffer
		if err := Package(t.Context(), dir, only, optional, &b); err != nil {
			t.Fatal(err)
		}
		r, err := unpack(&b, t.TempDir(), func(Record) error { return nil }, func(int64, int64) {})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range r.Artefacts {
			names = append(names, a.Name)
		}
		return names
	}
	if got := unpacked(nil, func(n string) bool { return n != "image/tiny" }); !slices.Equal(got, []string{"image/tiny", "image/tiny"}) {
		t.Errorf("without optional ones: %v", got)
	}
	if got := unpacked([]string{"image/odd"}, none); !slices.Equal(got, []string{"image/odd"}) {
		t.Errorf("one: %v", got)
	}
	for only, kind := range map[string]errs.Kind{"image/nonesuch": errs.NotFound, keptPrefix + "old": errs.Unavailable} {
		if err := Package(t.Context(), dir, []string{only}, none, &bytes.Buffer{}); errs.KindOf(err) != kind {
			t.Errorf("%s: %v", only, err)
		}
	}
}

const testKey = "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU"

func TestPackageRefusesSecrets(t *testing.T) {
	inImage := content(9, 3<<20)
	copy(inImage[1<<20-11:], "\n"+testKey) // over the border of two reads
	ofImage := content(9, 3<<20)
	copy(ofImage[1<<20+8<<10:], testKey) // a file in it
	for name, c := range map[string]struct {
		path    string
		content []byte
		listed  bool // in the record
		want    string
	}{
		"key in the record":     {"images/a/id", []byte(testKey), true, "private key"},
		"key in an image":       {"images/a/rootfs.ext4", inImage, true, "at byte"},
		"key file in an image":  {"images/a/rootfs.ext4", ofImage, true, "at byte"},
		"key beside":            {"images/a/id", []byte(testKey), false, "private key"},
		"minisign key":          {"images/a/m", []byte("untrusted comment: " + minisignKey + "WRTY0"), true, "secret key of minisign"},
		"PKCS8":                 {"images/a/k", []byte("-----BEGIN " + "PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC"), true, "private key"},
		"host key by name":      {"images/a/ssh_host_ed25519_key.pub", []byte("ssh-ed25519"), true, "identity"},
		"machine-id":            {"machine-id", []byte("0123"), true, "identity"},
		"database":              {"banger.db", []byte("SQLite"), false, "it is state"},
		"a VM's record":         {"vms/a/vm.json", []byte("{}"), true, "it is state"},
		"anything else unknown": {"images/a/notes.txt", []byte("hello"), false, "no part of the bundle"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files := sample(1)
			if c.listed {
				files[c.path] = c.content
			}
			writeBundle(t, dir, made, files)
			if !c.listed {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, c.path)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, c.path), c.content, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			err := Package(t.Context(), dir, nil, none, &bytes.Buffer{})
			if errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.path) {
				t.Errorf("got %v, want it to name %s and say %q", err, c.path, c.want)
			}
		})
	}
	// A program that reads keys knows how they begin, and is none.
	dir := t.TempDir()
	files := sample(1)
	files["images/a/ssh-keygen"] = []byte("\x00-----BEGIN OPENSSH " + "PRIVATE KEY-----\n\x00-----END")
	files["images/a/libgnutls"] = []byte("\x7fELF\x00" + testKey + "\x00") // with which it tests itself
	writeBundle(t, dir, made, files)
	packBundle(t, dir)
	// Changed since it was made.
	if err := flipBit(filepath.Join(dir, "images/odd/odd-01"), 5); err != nil {
		t.Fatal(err)
	}
	if err := Package(t.Context(), dir, nil, none, &bytes.Buffer{}); errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "odd-01") {
		t.Errorf("a changed file: %v", err)
	}
}

func TestParseRecordRefuses(t *testing.T) {
	file := func(path string) string {
		return fmt.Sprintf(`{"schema":1,"artefacts":[{"name":"a","files":[{"path":%q,"bytes":1,"sha256":"%064d"}]}]}`, path, 0)
	}
	for _, text := range []string{
		"", "[]", `{"schema":2}`, file("/etc/passwd"), file("../x"), file("a/../../x"), file(".."), file("."), file(""), file("a//b"), file("a/"),
		file("bundle.json"), file("a\x00b"), file("bundle.json/x"),
		`{"schema":1,"artefacts":[{"files":[{"path":"a","bytes":-1,"sha256":""}]}]}`,
		strings.Replace(file("a"), `"bytes"`, `"mode":"6755","bytes"`, 1),
		strings.Replace(file("a"), "}]}]}", fmt.Sprintf(`},{"path":"a/b","bytes":1,"sha256":"%064d"}]}]}`, 0), 1),
		strings.Replace(file("a"), "}]}]}", fmt.Sprintf(`},{"path":"a","bytes":1,"sha256":"%064d"}]}]}`, 0), 1),
	} {
		if r, err := parseRecord([]byte(text)); err == nil {
			t.Errorf("%s was taken: %+v", text, r)
		}
	}
	if _, err := parseRecord([]byte(file("a/b"))); err != nil {
		t.Error(err)
	}
}
