package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"
)

// bundleRecord is as much of a bundle.json as the tests alter.
type bundleRecord struct {
	Schema    int              `json:"schema"`
	Artefacts []bundleArtefact `json:"artefacts"`
}

type bundleArtefact struct {
	Name    string       `json:"name"`
	Source  string       `json:"source"`
	BuiltAt time.Time    `json:"built_at"`
	Files   []bundleFile `json:"files"`
}

type bundleFile struct {
	Path   string `json:"path"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func writeJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err == nil {
		err = os.WriteFile(path, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// smallBundle copies the kernel and the image tiny out of the bundle, as a bundle of its own
// that bears what earlier versions wrote down and no more.
func smallBundle(t *testing.T, dir string) {
	t.Helper()
	from := os.Getenv("BANGER_RUNTIME_DIR")
	var r bundleRecord
	readJSON(t, filepath.Join(from, "bundle.json"), &r)
	r.Artefacts = slices.DeleteFunc(r.Artefacts, func(a bundleArtefact) bool { return a.Name != "kernel/debian" && a.Name != "image/tiny" })
	for _, sub := range []string{"kernels", "images"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, sub := range []string{"kernels/debian", "images/tiny"} {
		if out, err := exec.Command("cp", "-a", "--reflink=auto", "--sparse=always", filepath.Join(from, sub), filepath.Join(dir, sub)).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	writeJSON(t, filepath.Join(dir, "bundle.json"), r)
}

// nextBundle makes of a small bundle one that is an hour newer, with another image tiny: a
// byte before its filesystem differs.
func nextBundle(t *testing.T, dir string) {
	t.Helper()
	tiny := filepath.Join(dir, "images/tiny")
	var manifest map[string]any
	readJSON(t, filepath.Join(tiny, "manifest.json"), &manifest)
	old := filepath.Join(tiny, "rootfs-"+manifest["sha256"].(string)[:16]+".ext4")
	f, err := os.OpenFile(old, os.O_RDWR, 0) // root may, or it would not be read-only
	if err != nil {
		t.Skipf("SKIP: only root can alter the copy: %v", err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := f.WriteAt([]byte{42}, 512); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	name := "rootfs-" + digest[:16] + ".ext4"
	if err := os.Rename(old, filepath.Join(tiny, name)); err != nil {
		t.Fatal(err)
	}
	manifest["sha256"] = digest
	if err := os.Remove(filepath.Join(tiny, "manifest.json")); err != nil {
		t.Fatal(err)
	}
	writeJSON(t, filepath.Join(tiny, "manifest.json"), manifest)
	text, err := os.ReadFile(filepath.Join(tiny, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	textSum := sha256.Sum256(text)
	var r bundleRecord
	readJSON(t, filepath.Join(dir, "bundle.json"), &r)
	for i := range r.Artefacts {
		a := &r.Artefacts[i]
		if a.BuiltAt = a.BuiltAt.Add(time.Hour); a.Name != "image/tiny" {
			continue
		}
		a.Files = []bundleFile{{"images/tiny/manifest.json", int64(len(text)), hex.EncodeToString(textSum[:])},
			{"images/tiny/" + name, a.Files[1].Bytes, digest}}
	}
	writeJSON(t, filepath.Join(dir, "bundle.json"), r)
}

// installed returns a banger of programs that lie as make install puts them, and know of
// no checkout.
func installed(t *testing.T, config string) (b *banger, prefix string) {
	t.Helper()
	prefix = t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.version=e2e", "-o", filepath.Join(prefix, "bin")+"/", "./cmd/banger", "./cmd/bangerd")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("SKIP: the programs can't be built here: %v: %s", err, out)
	}
	b = newBanger(t)
	b.bin = filepath.Join(prefix, "bin")
	home := t.TempDir()
	if err := os.MkdirAll(filepath.Join(home, "banger"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "banger", "config.toml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	b.env = append(b.env, "BANGER_RUNTIME_DIR=", "XDG_CONFIG_HOME="+home)
	return b, prefix
}

// A bundle is packed and signed on one machine, fetched and verified on another, which has no
// checkout, and used there. A VM outlives that another takes its place.
func TestBundleTravels(t *testing.T) {
	maker, other := newBanger(t), newBanger(t)
	src := filepath.Join(t.TempDir(), "runtime")
	smallBundle(t, src)
	maker.env = append(maker.env, "BANGER_RUNTIME_DIR="+src, "BANGER_KEY_PASSWORD=secret")
	public, private, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := minisign.EncryptKey("secret", private)
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	keyFile, archive := filepath.Join(out, "key"), filepath.Join(out, "banger-runtime.tar.zst")
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		t.Fatal(err)
	}
	// What an earlier version built is completed, and nothing of it built anew.
	before, err := os.Stat(filepath.Join(src, "kernels/debian/vmlinux"))
	if err != nil {
		t.Fatal(err)
	}
	maker.ok("runtime", "build", "kernel/debian")
	if record, err := os.ReadFile(filepath.Join(src, "bundle.json")); err != nil || !strings.Contains(string(record), `"licence": "GPL-2.0-only"`) || !strings.Contains(string(record), `"mode": "0444"`) {
		t.Errorf("the record was not completed: %v\n%s", err, record)
	}
	if after, err := os.Stat(filepath.Join(src, "kernels/debian/vmlinux")); err != nil || !os.SameFile(before, after) {
		t.Errorf("the kernel was built anew: %v", err)
	}
	maker.ok("runtime", "verify")
	maker.ok("runtime", "package", "-o", archive, "--sign", keyFile)

	b, prefix := installed(t, "runtime_key = \""+public.String()+"\"\nimage = \"tiny\"\ndns_publish = \"none\"\n")
	b.refused(125, []string{"there is no runtime bundle", filepath.Join(prefix, "lib/banger"), "banger runtime fetch"}, "run", "--rm", "--", "true")
	b.ok("runtime", "fetch", "--url", "file://"+archive)
	var where struct{ Path, Rule string }
	if err := json.Unmarshal([]byte(b.ok("runtime", "path", "--json")), &where); err != nil || where.Path != filepath.Join(prefix, "lib/banger") || where.Rule != "beside the program" {
		t.Errorf("it is at %+v, %v", where, err)
	}
	b.ok("runtime", "verify")
	if got := b.ok("run", "--rm", "--", "echo", "hello"); got != "hello\n" {
		t.Errorf("a VM says %q", got)
	}

	// One that is not signed is refused, and changes nothing.
	unsigned := filepath.Join(out, "unsigned.tar.zst")
	maker.ok("runtime", "package", "-o", unsigned)
	b.refused(1, []string{"the signature of the bundle"}, "runtime", "fetch", "--url", "file://"+unsigned)

	// The next bundle takes its place; the disk of a VM stays on the image that it is of, also that
	// of another banger, which nobody asks.
	name := b.vm("--name", "keeper", "--wait", "agent")
	b.ok("exec", name, "--", "sh", "-c", "echo kept > /root/file && sync")
	other.bin, other.env = b.bin, append(other.env, "BANGER_RUNTIME_DIR="+filepath.Join(prefix, "lib/banger"))
	other.ok("create", "--image", "tiny", "--name", "theirs")
	next := filepath.Join(t.TempDir(), "next")
	smallBundle(t, next)
	nextBundle(t, next)
	b.refused(1, []string{"bear no signature", "banger runtime package", "--url file://"}, "runtime", "install", next)
	maker.env = append(maker.env, "BANGER_RUNTIME_DIR="+next)
	maker.ok("daemon", "stop")
	maker.ok("runtime", "package", "-o", filepath.Join(out, "next.tar.zst"), "--sign", keyFile)
	b.ok("runtime", "fetch", "--url", "file://"+filepath.Join(out, "next.tar.zst"))
	b.ok("runtime", "verify")
	other.ok("start", "theirs", "--wait", "agent")
	if got := other.ok("exec", "theirs", "--", "echo", "still"); got != "still\n" {
		t.Errorf("after another bundle took its place another's VM says %q", got)
	}
	other.ok("rm", "-f", "theirs")
	b.ok("restart", name, "--wait", "agent")
	if got := b.ok("exec", name, "--", "cat", "/root/file"); got != "kept\n" {
		t.Errorf("after another bundle took its place the VM has %q", got)
	}
	if got := b.ok("run", "--rm", "--", "echo", "new"); got != "new\n" {
		t.Errorf("a VM of the new bundle says %q", got)
	}
	b.refused(1, []string{"older than the one installed", "--allow-downgrade"}, "runtime", "fetch", "--url", "file://"+archive)
	b.ok("runtime", "fetch", "--rollback")
	b.ok("runtime", "verify")
	b.ok("restart", name, "--wait", "agent")
	if got := b.ok("exec", name, "--", "cat", "/root/file"); got != "kept\n" {
		t.Errorf("after a rollback the VM has %q", got)
	}
}
