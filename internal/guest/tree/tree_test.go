package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func write(t testing.TB, path, data string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func mkdirs(t testing.TB, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// list prints a tree: kind, mode, size or target, modification time and link count.
func list(t testing.TB, root string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		what := fi.ModTime().UTC().Format("2006-01-02T15:04:05.999999999")
		switch fi.Mode().Type() {
		case fs.ModeSymlink:
			what, _ = os.Readlink(p)
		case 0:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" %q links=%d", data, fi.Sys().(*syscall.Stat_t).Nlink)
		}
		fmt.Fprintf(&out, "%s %s %s\n", rel, fi.Mode(), what)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestTreeComesBackTheSame(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	mkdirs(t, src+"/empty", src+"/deep/er", src+"/closed")
	write(t, src+"/plain", "hello", 0o644)
	write(t, src+"/secret", "", 0o400)
	write(t, src+"/deep/er/tool", "#!/bin/sh\n", 0o4755)
	write(t, src+"/"+strings.Repeat("long", 60), "x", 0o644)
	write(t, src+"/odd \n\x01\xff name", "y", 0o644)
	write(t, src+"/closed/inside", "z", 0o644)
	for name, target := range map[string]string{"rel": "deep/er/tool", "abs": "/etc/passwd", "dangling": "no/where", "up": "../../.."} {
		if err := os.Symlink(target, filepath.Join(src, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(src+"/plain", src+"/zweitname"); err != nil {
		t.Fatal(err)
	}
	when := time.Date(2001, 2, 3, 4, 5, 6, 789_000_000, time.UTC)
	for _, p := range []string{"/plain", "/deep/er", "/empty", "/closed", ""} {
		if err := os.Chtimes(src+p, when, when); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(src+"/closed", 0o555)
	t.Cleanup(func() { os.Chmod(src+"/closed", 0o755) })

	dst := filepath.Join(t.TempDir(), "dst")
	var packed, unpacked int64
	var archive bytes.Buffer
	if err := Pack(&archive, src, false, func(n int64) { packed += n }); err != nil {
		t.Fatal(err)
	}
	archive.WriteString("what follows the archive")
	if err := Unpack(&archive, dst, Options{SetID: true, Progress: func(n int64) { unpacked += n }}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(dst+"/closed", 0o755) })
	if rest := archive.String(); rest != "what follows the archive" {
		t.Errorf("read beyond the archive: %q is left", rest)
	}
	if want, got := list(t, src), list(t, dst); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	info, err := Stat(src)
	if err != nil || !info.IsDir || packed != info.Bytes || unpacked != info.Bytes {
		t.Errorf("told %d packed, %d unpacked, stat %+v, %v", packed, unpacked, info, err)
	}
}

func copyTree(t testing.TB, src, dst string, o Options) error {
	t.Helper()
	var archive bytes.Buffer
	if err := Pack(&archive, src, false, nil); err != nil {
		t.Fatal(err)
	}
	return Unpack(&archive, dst, o)
}

func TestFileReplacesFileAndLink(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/src", "new", 0o640)
	write(t, dir+"/victim", "old", 0o600)
	write(t, dir+"/dst", "old", 0o600)
	if err := os.Symlink("victim", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/dst", "/link", "/fresh"} {
		if err := copyTree(t, dir+"/src", dir+name, Options{}); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Lstat(dir + name)
		data, _ := os.ReadFile(dir + name)
		if err != nil || fi.Mode() != 0o640 || string(data) != "new" {
			t.Errorf("%s: got %v, %q, %v", name, fi.Mode(), data, err)
		}
	}
	if data, _ := os.ReadFile(dir + "/victim"); string(data) != "old" {
		t.Error("a link's target was written")
	}
}

func TestMergeKeepsWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	mkdirs(t, dir+"/src/sub", dir+"/dst/sub")
	write(t, dir+"/src/sub/a", "new", 0o644)
	write(t, dir+"/dst/sub/a", "old", 0o644)
	write(t, dir+"/dst/sub/b", "stays", 0o644)
	os.Chmod(dir+"/dst/sub", 0o750)
	if err := copyTree(t, dir+"/src", dir+"/dst", Options{}); err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(dir + "/dst/sub/a")
	b, _ := os.ReadFile(dir + "/dst/sub/b")
	fi, err := os.Stat(dir + "/dst/sub")
	if string(a) != "new" || string(b) != "stays" || err != nil || fi.Mode().Perm() != 0o750 {
		t.Errorf("got %q, %q, %v, %v", a, b, fi, err)
	}
	write(t, dir+"/file", "x", 0o644)
	if err := copyTree(t, dir+"/src", dir+"/file", Options{}); err == nil {
		t.Error("a directory replaced a file")
	}
	if err := copyTree(t, dir+"/file", dir+"/dst", Options{}); err == nil {
		t.Error("a file replaced a directory")
	}
}

func TestSetIDBitsNeedLeave(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/src", "x", 0o755|fs.ModeSetuid|fs.ModeSetgid)
	if err := copyTree(t, dir+"/src", dir+"/dst", Options{}); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(dir + "/dst"); err != nil || fi.Mode() != 0o755 {
		t.Errorf("got %v, %v", fi.Mode(), err)
	}
}

func TestSpecialFilesAreSkippedAndNamed(t *testing.T) {
	dir := t.TempDir()
	mkdirs(t, dir+"/src")
	write(t, dir+"/src/file", "x", 0o644)
	if err := syscall.Mkfifo(dir+"/src/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	err := Pack(&archive, dir+"/src", false, nil)
	skipped, ok := errors.AsType[Skipped](err)
	if !ok || len(skipped) != 1 || !strings.HasPrefix(skipped[0], "fifo (") {
		t.Fatalf("got %v", err)
	}
	if err := Unpack(&archive, dir+"/dst", Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/dst/file"); err != nil {
		t.Error(err)
	}
	if err := Pack(io.Discard, dir+"/src/fifo", false, nil); err == nil {
		t.Error("a fifo by itself was packed")
	}
}

func TestTarget(t *testing.T) {
	dir := t.TempDir()
	mkdirs(t, dir+"/d")
	write(t, dir+"/f", "", 0o644)
	for name, target := range map[string]string{"toDir": "d", "toFile": "f", "d/planted": "../f", "dangling": "d/new"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct{ name, base, want string }{
		{"/d", "x", "/d/x"},
		{"/d/", "x", "/d/x"},
		{"/d", ".", "/d"},
		{"/toDir", "x", "/toDir/x"},
		{"/f", "x", "/f"},
		{"/toFile", "x", "/f"},          // what the user named is followed
		{"/d", "planted", "/d/planted"}, // what a copy may have left there is not
		{"/new", "x", "/new"},
		{"/new/", "x", "/new/"},
		{"/dangling", "x", "/dangling"},
		{"/no/new", "x", ""},
		{"/f/", "x", ""},
		{"/f/x", "x", ""},
		{"/d", "..", ""},
		{"/d", "a/b", ""},
		{"/d", "", ""},
	}
	for _, tt := range tests {
		got, err := Target(dir+tt.name, tt.base)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%s, %s: got %s", tt.name, tt.base, got)
			}
		} else if err != nil || got != dir+tt.want {
			t.Errorf("%s, %s: got %s, %v; want %s", tt.name, tt.base, got, err, tt.want)
		}
	}
	if err := copyTree(t, dir+"/f", dir+"/absent/", Options{}); err == nil {
		t.Error("a file became absent/")
	}
}

// entry is a header with contents.
type entry struct {
	tar.Header
	data string
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		e.Size = int64(len(e.data))
		if e.Mode == 0 {
			e.Mode = 0o755
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, e.data)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

var rootDir = entry{Header: tar.Header{Name: "./", Typeflag: tar.TypeDir}}

func file(name string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg}, data: "evil"}
}

func link(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}}
}

func hard(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}}
}

func dirEntry(name string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir}}
}

// hostile lists archives that must be refused.
func hostile(t testing.TB) map[string][]byte {
	return map[string][]byte{
		"empty":              {},
		"no root":            archive(t, file("./a")),
		"root is a link":     archive(t, link(".", "/etc")),
		"absolute":           archive(t, rootDir, file("/canary")),
		"dot dot":            archive(t, rootDir, file("../canary")),
		"dot dot inside":     archive(t, rootDir, dirEntry("./a"), file("./a/../../canary")),
		"through a link":     archive(t, rootDir, link("./a", ".."), file("./a/canary")),
		"through abs link":   archive(t, rootDir, link("./a", "/"), dirEntry("./a/x")),
		"two links":          archive(t, rootDir, link("./a", "."), link("./a/b", ".."), file("./a/b/canary")),
		"hard link out":      archive(t, rootDir, hard("./a", "../canary")),
		"hard link absolute": archive(t, rootDir, hard("./a", "/etc/passwd")),
		"hard via link":      archive(t, rootDir, link("./up", ".."), hard("./a", "./up/canary")),
		"dir over link":      archive(t, rootDir, link("./a", ".."), dirEntry("./a/")),
		"device":             archive(t, rootDir, entry{Header: tar.Header{Name: "./a", Typeflag: tar.TypeBlock, Devmajor: 8}}),
		"fifo":               archive(t, rootDir, entry{Header: tar.Header{Name: "./a", Typeflag: tar.TypeFifo}}),
		"root again":         archive(t, rootDir, rootDir),
		"file then more":     archive(t, file("."), file("./a")),
		"cut in a file":      archive(t, rootDir, file("./a"))[:3*512+2],
		"cut between":        archive(t, rootDir, file("./a"))[:512],
		"cut at the marker":  archive(t, rootDir)[:2*512],
	}
}

// sandbox makes a directory with a canary beside the destination, and returns a check that
// nothing but the destination has changed.
func sandbox(t testing.TB) (dst string, check func()) {
	dir := t.TempDir()
	write(t, dir+"/canary", "alive", 0o600)
	dst = dir + "/dst"
	return dst, func() {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return e.Name() == "dst" })
		fi, err := os.Lstat(dir + "/canary")
		if err != nil {
			t.Fatalf("the canary is dead: %v", err)
		}
		data, _ := os.ReadFile(dir + "/canary")
		if len(entries) != 1 || string(data) != "alive" || fi.Mode() != 0o600 || fi.Sys().(*syscall.Stat_t).Nlink != 1 {
			t.Fatalf("something outside was touched: %v, canary %q %v", entries, data, fi.Mode())
		}
	}
}

func TestHostileArchivesAreRefused(t *testing.T) {
	for name, data := range hostile(t) {
		t.Run(name, func(t *testing.T) {
			dst, check := sandbox(t)
			if err := Unpack(bytes.NewReader(data), dst, Options{}); err == nil {
				t.Error("it was unpacked")
			}
			check()
			// Links left by the failed copy must not help the next one either.
			Unpack(bytes.NewReader(archive(t, rootDir, file("./a/canary"), file("./a"))), dst, Options{})
			check()
		})
	}
}

// A copy that is cut off leaves no file that looks whole.
func TestCutFileHasNoFinalName(t *testing.T) {
	dst, check := sandbox(t)
	data := archive(t, rootDir, file("./a"))
	if err := Unpack(bytes.NewReader(data[:2*512+2]), dst, Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	entries, err := os.ReadDir(dst)
	if err != nil || len(entries) != 0 {
		t.Errorf("left %v, %v", entries, err)
	}
	check()
}

func FuzzUnpack(f *testing.F) {
	for _, data := range hostile(f) {
		f.Add(data)
	}
	f.Add(archive(f, rootDir, dirEntry("./d"), file("./d/f"), hard("./h", "./d/f"), link("./l", "d/f")))
	f.Fuzz(func(t *testing.T, data []byte) {
		dst, check := sandbox(t)
		Unpack(bytes.NewReader(data), dst, Options{SetID: true})
		check()
		filepath.WalkDir(dst, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(p, 0o700) // so that the test's directory can be removed
			}
			return nil
		})
	})
}
