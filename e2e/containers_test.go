package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// staticProgram is the only file of an image from scratch: no shell, no init, no /etc.
const staticProgram = `package main

import (
	"fmt"
	"os"
)

func main() {
	dir, _ := os.Getwd()
	fmt.Println(os.Args[1:], os.Getuid(), os.Getgid(), dir, os.Getenv("GREETING"))
	if len(os.Args) > 1 {
		os.Exit(len(os.Args))
	}
}
`

// tarFile is an archive of these files, directories and links.
func tarFile(t *testing.T, files ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range files {
		content := h.PAXRecords["content"]
		h.PAXRecords, h.Size = nil, int64(len(content))
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func regular(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, PAXRecords: map[string]string{"content": content}}
}

func hardLink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

// dockerArchive is what docker save writes of an image of these layers.
func dockerArchive(t *testing.T, config map[string]any, layers ...[]byte) string {
	t.Helper()
	var files []tar.Header
	var names, diffs []string
	for _, layer := range layers {
		sum := fmt.Sprintf("%x", sha256.Sum256(layer))
		files = append(files, regular(sum+"/layer.tar", string(layer)))
		names, diffs = append(names, sum+"/layer.tar"), append(diffs, "sha256:"+sum)
	}
	c, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("%x.json", sha256.Sum256(c))
	m, err := json.Marshal([]map[string]any{{"Config": name, "RepoTags": []string{"test:1"}, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	return string(tarFile(t, append(files, regular(name, string(c)), regular("manifest.json", string(m)))...))
}

// A scratch image with one static program comes on standard input and runs as its
// configuration says.
func TestScratchImageRuns(t *testing.T) {
	b := newBanger(t)
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte(staticProgram), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "prog"), source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(dir, "prog"))
	if err != nil {
		t.Fatal(err)
	}
	archive := dockerArchive(t, map[string]any{"Entrypoint": []string{"/prog"}, "Cmd": []string{"one", "two"}, "Env": []string{"GREETING=hello there"},
		"User": "1234:5678", "WorkingDir": "/made/for/it"}, tarFile(t, regular("prog", string(program))))
	if r := b.run(archive, "image", "import", "-", "scratch:1"); r.code != 0 || r.out != "scratch:1\n" {
		t.Fatalf("import: %+v", r)
	}
	r := b.run("", "run", "--rm", "--image", "scratch:1")
	if r.code != 3 || r.out != "[one two] 1234 5678 /made/for/it hello there\n" {
		t.Errorf("as its configuration says: %+v", r)
	}
	r = b.run("", "run", "--rm", "--image", "scratch:1", "-u", "root", "-w", "/", "-e", "GREETING=mine", "--", "/prog")
	if r.code != 0 || r.out != "[] 0 0 / mine\n" {
		t.Errorf("as the command line says: %+v", r)
	}
	entries, err := os.ReadDir(filepath.Join(b.state, "images"))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".staging") || err != nil {
			t.Errorf("left behind: %s (%v)", e.Name(), err)
		}
	}
}

// treeListing lists directories: kind and mode, owner, number of names, size, time, target and
// content of each file. It is run by the image's own programs, in a VM and in what umoci unpacks.
const treeListing = `find "$@" -xdev ! -path '*/modules*' ! -type d -exec stat -c '%N %f %u %g %h %s %Y' {} + | sort
find "$@" -xdev ! -path '*/modules*' -type d -exec stat -c '%n %f %u %g' {} + | sort
find "$@" -xdev ! -path '*/modules*' -type f -exec sha256sum {} + | sort`

// sameAsUnpacked boots an image and compares directories of it with what umoci makes of the
// same archive, one that skopeo calls so.
func (b *banger) sameAsUnpacked(image, archive string, dirs ...string) {
	b.t.Helper()
	for _, program := range []string{"skopeo", "umoci"} {
		if _, err := exec.LookPath(program); err != nil {
			b.t.Skipf("SKIP: this host has no %s", program)
		}
	}
	if os.Geteuid() != 0 {
		b.t.Skip("SKIP: only root can have umoci unpack files of other users")
	}
	work := b.t.TempDir()
	run := func(args ...string) string {
		out, err := exec.Command(args[0], args[1:]...).Output()
		if err != nil {
			b.t.Fatalf("%q: %v", args, err)
		}
		return string(out)
	}
	run("skopeo", "--insecure-policy", "copy", "-q", archive, "oci:"+work+"/layout:latest")
	run("umoci", "unpack", "--image", work+"/layout:latest", work+"/bundle")
	shell := func(script string) []string { return append([]string{"/bin/sh", "-c", script, "sh"}, dirs...) }
	want := run(append([]string{"chroot", work + "/bundle/rootfs"}, shell(treeListing)...)...)
	// On a larger disk, which the filesystem is grown to while it is mounted.
	r := b.run("", append([]string{"run", "--rm", "--disk", "12G", "--image", image, "--"}, shell(treeListing+"\nset -- $(df -k / | tail -n 1); echo ROOT $2")...)...)
	listed, kib, _ := strings.Cut(r.out, "ROOT ")
	if n, err := strconv.Atoi(strings.TrimSpace(kib)); r.code != 0 || err != nil || n < 11<<20 {
		b.t.Fatalf("list in the VM: the root has %q KiB; %d, %s", kib, r.code, r.err)
	}
	got, wanted := strings.Split(listed, "\n"), strings.Split(want, "\n")
	if len(wanted) < 10 {
		b.t.Errorf("there is little to compare:\n%s", want)
	}
	for i := range min(len(got), len(wanted)) {
		if got[i] != wanted[i] {
			b.t.Fatalf("the first difference:\n%s\nin the VM,\n%s\nas unpacked", got[i], wanted[i])
		}
	}
	if len(got) != len(wanted) {
		b.t.Errorf("%d lines in the VM, %d as unpacked", len(got), len(wanted))
	}
}

// BusyBox alone, and 39 layers on it that remove, replace and link what is below: the trees of
// both are those that umoci unpacks.
func TestLayeredImagesBoot(t *testing.T) {
	b := newBanger(t)
	dir := t.TempDir()
	base := filepath.Join(dir, "base.tar")
	b.ok("image", "export", "tiny", "-o", base)
	rootfs, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	layers := [][]byte{rootfs}
	for n := range 39 {
		files := []tar.Header{regular(fmt.Sprintf("data/%d/file", n), strings.Repeat("x", n*1000)), {Typeflag: tar.TypeSymlink, Name: fmt.Sprintf("data/%d/link", n), Linkname: "/bin/sh"}}
		if n > 0 {
			files = append(files, hardLink(fmt.Sprintf("data/%d/same", n), fmt.Sprintf("data/%d/file", n-1)), regular(fmt.Sprintf("data/%d/.wh.link", n-1), ""))
		}
		if n%10 == 9 {
			files = append(files, regular(fmt.Sprintf("data/.wh.%d", n-5), ""), regular(fmt.Sprintf("data/%d/.wh..wh..opq", n-3), ""))
		}
		layers = append(layers, tarFile(t, files...))
	}
	archive := filepath.Join(dir, "layered.tar")
	if err := os.WriteFile(archive, []byte(dockerArchive(t, nil, layers...)), 0o644); err != nil {
		t.Fatal(err)
	}
	b.ok("image", "import", archive, "layered")
	b.sameAsUnpacked("layered", "docker-archive:"+archive, "/data", "/bin", "/usr")
}

// All of Debian, out through an OCI archive and in again.
func TestDebianAsAContainerImage(t *testing.T) {
	if !*long {
		t.Skip("SKIP: it takes minutes; make test-long runs it")
	}
	b := newBanger(t)
	archive := filepath.Join(t.TempDir(), "debian.tar")
	b.ok("image", "export", "debian", "--format", "oci", "-o", archive)
	b.ok("image", "import", archive, "again")
	b.sameAsUnpacked("again", "oci-archive:"+archive, "/usr", "/bin", "/sbin", "/opt", "/srv")
}
