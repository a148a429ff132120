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

// tarFile is an archive of regular files.
func tarFile(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A scratch image with one static program, as docker save writes it, comes on standard input
// and runs as its configuration says.
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
	layer := tarFile(t, map[string][]byte{"prog": program})
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/prog"}, "Cmd": []string{"one", "two"}, "Env": []string{"GREETING=hello there"},
			"User": "1234:5678", "WorkingDir": "/made/for/it"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	archive := tarFile(t, map[string][]byte{
		"manifest.json": []byte(`[{"Config":"config.json","RepoTags":["scratch:1"],"Layers":["layer.tar"]}]`),
		"config.json":   config, "layer.tar": layer,
	})
	if r := b.run(string(archive), "image", "import", "-", "scratch:1"); r.code != 0 || r.out != "scratch:1\n" {
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
	if _, err := os.Stat(filepath.Join(b.state, "images")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(b.state, "images"))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".staging") || err != nil {
			t.Errorf("left behind: %s (%v)", e.Name(), err)
		}
	}
}
