package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

// installation is a tar as mmdebstrap writes it.
func installation(t testing.TB, extra ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content string) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	dir := func(name string) { add(tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, "") }
	file := func(name string, mode int64, content string) {
		add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode}, content)
	}
	dir("./")
	file("./.archives", 0o644, "busybox-static_1%3a1.35.0-4_amd64.deb\npartial\nlock\n")
	dir("./bin/")
	file("./bin/busybox", 0o755, "box")
	add(tar.Header{Name: "./bin/ping", Typeflag: tar.TypeReg, Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02"}, Format: tar.FormatPAX}, "ping")
	dir("./etc/")
	dir("./etc/apt/")
	dir("./etc/apt/apt.conf.d/")
	file("./etc/apt/apt.conf.d/99mmdebstrap", 0o644, "proxy")
	file("./etc/hostname", 0o644, "builder")
	dir("./etc/systemd/")
	file("./etc/systemd/slow.service", 0o644, "slow")
	dir("./etc/systemdx/")
	dir("./var/lib/dpkg/")
	file("./var/lib/dpkg/status", 0o644, "Package: zsh\nStatus: install ok installed\nVersion: 5.9-4\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: apt\nStatus: install ok installed\nDescription: x\n Version: no\nVersion: 2.6.1")
	for _, h := range extra {
		add(h, "")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func listTar(t testing.TB, r io.Reader) []string {
	t.Helper()
	var out []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c %o %s", h.Typeflag, h.Mode, h.Name)
		for _, part := range []string{h.Linkname, string(content), h.PAXRecords["SCHILY.xattr.security.capability"]} {
			if part != "" {
				line += fmt.Sprintf(" %q", part)
			}
		}
		out = append(out, line)
	}
}

func TestRewriteWhole(t *testing.T) {
	m := Manifest{Drop: []string{"/etc/systemd"}, Entries: []Entry{
		{Path: "/etc/hostname", Mode: 0o644, Content: "localhost\n"},
		{Path: "/srv/data", Mode: 0o1777, Dir: true},
	}}
	var out bytes.Buffer
	packages, err := rewriteRootfs(bytes.NewReader(installation(t)), &out, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(packages); got != "[{apt 2.6.1} {zsh 5.9-4}]" {
		t.Errorf("packages are %s", got)
	}
	got := listTar(t, &out)
	for _, want := range []string{
		`0 755 ./bin/busybox "box"`, `0 755 ./bin/ping "ping" "\x01\x00\x00\x02"`, `5 755 ./etc/systemdx/`,
		`5 755 ./dev/`, `0 644 ./etc/hostname "localhost\n"`, `5 755 ./srv/`, `5 1777 ./srv/data/`,
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, strings.Join(got, "\n"))
		}
	}
	for _, line := range got {
		for _, bad := range []string{"99mmdebstrap", ".archives", "systemd/", "builder"} {
			if strings.Contains(line, bad) {
				t.Errorf("%s was kept", line)
			}
		}
	}
}

func TestRewriteBusybox(t *testing.T) {
	m := Manifest{Keep: []string{"/bin/busybox"}, Busybox: "/bin/busybox", Entries: []Entry{
		{Path: "/etc/hosts", Mode: 0o644, Content: "127.0.0.1 localhost\n"},
		{Path: "/usr/bin/own", Mode: 0o755, Content: "mine"},
	}}
	var out bytes.Buffer
	in := installation(t, tar.Header{Name: "./usr/bin/", Typeflag: tar.TypeDir, Mode: 0o700})
	packages, err := rewriteRootfs(bytes.NewReader(in), &out, m, func(box []byte) ([]string, error) {
		if string(box) != "box" {
			t.Errorf("asked %q for its applets", box)
		}
		return []string{"bin/sh", "bin/busybox", "linuxrc", "sbin/init", "usr/bin/own", "usr/sbin/httpd"}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(packages); got != "[{apt 2.6.1} {zsh 5.9-4}]" {
		t.Errorf("packages are %s", got)
	}
	want := `5 755 ./
5 755 ./bin/
0 755 ./bin/busybox "box"
5 755 ./dev/
5 755 ./proc/
5 755 ./run/
5 755 ./sys/
2 777 ./bin/sh "/bin/busybox"
5 755 ./usr/
5 755 ./usr/sbin/
2 777 ./usr/sbin/httpd "/bin/busybox"
5 755 ./etc/
0 644 ./etc/hosts "127.0.0.1 localhost\n"
5 755 ./usr/bin/
0 755 ./usr/bin/own "mine"`
	if got := strings.Join(listTar(t, &out), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestRewriteRefuses(t *testing.T) {
	none := func([]byte) ([]string, error) { return nil, nil }
	for _, c := range []struct {
		name string
		in   []byte
		m    Manifest
		want string
	}{
		{"no tar", []byte(strings.Repeat("hello", 500)), Manifest{}, "read the installation"},
		{"cut short", installation(t)[:1700], Manifest{}, "unexpected EOF"},
		{"nothing to keep", installation(t), Manifest{Keep: []string{"/bin/zsh"}}, "none of the packages has /bin/zsh"},
		{"no busybox", installation(t), Manifest{Busybox: "/bin/toybox"}, "none of the packages has /bin/toybox"},
	} {
		if _, err := rewriteRootfs(bytes.NewReader(c.in), io.Discard, c.m, none); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	failing := func([]byte) ([]string, error) { return nil, errors.New("exec format error") }
	if _, err := rewriteRootfs(bytes.NewReader(installation(t)), io.Discard, Manifest{Busybox: "/bin/busybox"}, failing); err == nil || !strings.Contains(err.Error(), "exec format error") {
		t.Errorf("a busybox that does not run: %v", err)
	}
}

func TestParseArchives(t *testing.T) {
	got := fmt.Sprint(parseArchives([]byte("busybox-static_1%3a1.35.0-4+b1_amd64.deb\npartial\nlock\na_b.deb\nx_%zz_all.deb\n")))
	if got != "[{busybox-static 1:1.35.0-4+b1}]" {
		t.Errorf("got %s", got)
	}
}

// FuzzRewrite checks that whatever mmdebstrap may write, what is written on is a tar, has
// nothing that is dropped, and has what is added.
func FuzzRewrite(f *testing.F) {
	f.Add(installation(f))
	m := Manifest{Drop: []string{"/etc/systemd"}, Entries: []Entry{{Path: "/etc/hostname", Mode: 0o644, Content: "localhost\n"}}}
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		if _, err := rewriteRootfs(bytes.NewReader(in), &out, m, nil); err != nil {
			return
		}
		got := listTar(t, &out)
		if len(got) == 0 || got[len(got)-1] != `0 644 ./etc/hostname "localhost\n"` {
			t.Errorf("the last entry is %q", got[len(got)-1:])
		}
	})
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte("Package: zsh\nStatus: install ok installed\nVersion: 5.9-4\n\n"))
	f.Fuzz(func(t *testing.T, status []byte) {
		for _, p := range parseStatus(status) {
			if p.Name == "" {
				t.Error("a package without a name")
			}
		}
		for _, p := range parseArchives(status) {
			if strings.ContainsAny(p.Name, "_\n") {
				t.Errorf("package %q", p.Name)
			}
		}
		if id, release := osRelease(string(status)); strings.Contains(id+release, "\n") {
			t.Errorf("%q is the release %q", id, release)
		}
	})
}
