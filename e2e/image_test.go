package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
)

// image returns an image as the daemon shows it.
func (b *banger) image(ref string) api.Image {
	b.t.Helper()
	var images []api.Image
	if err := json.Unmarshal([]byte(b.ok("image", "inspect", ref)), &images); err != nil || len(images) != 1 {
		b.t.Fatalf("inspect image %s: %v", ref, err)
	}
	return images[0]
}

// images lists the titles of all images.
func (b *banger) images() (titles []string) {
	b.t.Helper()
	var images []api.Image
	if err := json.Unmarshal([]byte(b.ok("image", "ls", "--json")), &images); err != nil {
		b.t.Fatal(err)
	}
	for _, i := range images {
		titles = append(titles, i.Title)
	}
	return titles
}

// noDraft looks for what a failed image has left.
func (b *banger) noDraft() {
	b.t.Helper()
	for _, pattern := range []string{"images/.staging-*", "images/.generations/.staging-*"} {
		if left, err := filepath.Glob(filepath.Join(b.state, pattern)); err != nil || left != nil {
			b.t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

// A VM's disk becomes an image; the image is one as any other, in use by name, and a new one
// of its name leaves VMs of the old one alone.
func TestImageOfAVM(t *testing.T) {
	b := newBanger(t)
	vm := b.vm("--name", "origin")
	b.ok("exec", vm, "--", "sh", "-c", "echo one > /root/mark; echo ls > /root/.ash_history")
	b.refused(1, []string{"is running", "banger stop"}, "commit", vm, "site/app:1")
	b.ok("stop", vm)
	for _, name := range []string{"a:b:c", "../x", "x@sha256:00", "/x", "A"} {
		b.refused(1, []string{"no image can be called"}, "commit", vm, name)
	}
	if out := b.ok("commit", vm, "site/app:1"); out != "site/app:1\n" {
		t.Errorf("commit says %q", out)
	}
	b.noDraft()
	first := b.image("site/app:1")
	if first.Base == nil || first.Base.Name != "tiny" || len(first.Packages) != 0 || first.VirtualBytes != 256<<20 || first.AllocatedBytes > 40<<20 {
		t.Errorf("the image is %+v", first)
	}
	read := func(ref string, args ...string) string {
		return b.ok(append([]string{"run", "--rm", "--image", ref, "--", "sh", "-c", "cat /root/mark; cat /root/.ash_history 2>/dev/null; true"}, args...)...)
	}
	if got := read("site/app:1"); got != "one\n" {
		t.Errorf("in the image: %q", got)
	}

	b.ok("create", "--image", "site/app:1", "--name", "old")
	b.refused(1, []string{"in use by old"}, "image", "rm", "site/app:1")
	b.ok("start", "--wait", "agent", vm)
	b.ok("exec", vm, "--", "sh", "-c", "echo two > /root/mark")
	b.ok("commit", "--stop", vm, "site/app:1")
	if got := b.images(); !slices.Contains(got, "site/app:1") || !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "site/app@sha256:") }) {
		t.Errorf("images are %q", got)
	}
	b.ok("start", "--wait", "agent", "old")
	if got := b.ok("exec", "old", "--", "cat", "/root/mark"); got != "one\n" {
		t.Errorf("a VM of the old image has %q", got)
	}
	if got := read("site/app:1"); got != "two\n" {
		t.Errorf("the new image has %q", got)
	}
	b.ok("image", "prune")
	if got := b.image(first.Digest).UsedBy; !slices.Equal(got, []string{"old"}) {
		t.Errorf("the old image is used by %q", got)
	}
	b.ok("rm", "-f", "old")
	if out := b.ok("image", "prune"); !strings.Contains(out, "site/app@sha256:") {
		t.Errorf("prune says %q", out)
	}
	b.ok("image", "tag", "site/app:1", "second")
	b.ok("image", "rm", "site/app:1")
	if got := read("second"); got != "two\n" {
		t.Errorf("by its other name: %q", got)
	}
	b.ok("rm", "-f", vm)
	b.ok("image", "rm", "second")
	if _, err := os.ReadDir(first.Path); err == nil {
		t.Error("the removed image's file is left")
	}
	b.noDraft()
}

// interrupted runs a command, whose input does not end, and sends it a signal when it has said
// something on standard error.
func (b *banger) interrupted(sig unix.Signal, stdin, after string, args ...string) result {
	b.t.Helper()
	c := b.command(args...)
	in, err := c.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	said, err := c.StderrPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := io.WriteString(in, stdin); err != nil {
		b.t.Fatal(err)
	}
	var text []byte
	for sent, buf := false, make([]byte, 4096); err == nil; {
		var n int
		n, err = said.Read(buf)
		if text = append(text, buf[:n]...); !sent && strings.Contains(string(text), after) {
			sent = true
			c.Process.Signal(sig)
		}
	}
	c.Wait() // its exit code tells
	return result{err: string(text), code: c.ProcessState.ExitCode()}
}

func TestCustomize(t *testing.T) {
	b := newBanger(t)
	script := func(text string) string {
		path := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	before := b.image("tiny")
	r := b.run("", "image", "customize", "tiny", "mine", "--script", script("set -e\necho doing it\necho made > /etc/mark\n"))
	if r.code != 0 || r.out != "mine\n" || !strings.Contains(r.err, "doing it") {
		t.Fatalf("exit code %d: %q\n%s", r.code, r.out, r.err)
	}
	if made := b.image("mine"); made.Base.Digest != before.Digest || len(made.Script) != 64 {
		t.Errorf("made %+v", made)
	}
	if out := b.ok("run", "--rm", "--image", "mine", "--", "cat", "/etc/mark"); out != "made\n" {
		t.Errorf("in it is %q", out)
	}
	if after := b.image("tiny"); after.SHA256 != before.SHA256 || after.Digest != before.Digest {
		t.Error("the base has changed")
	}

	failing := script("#!/bin/sh\necho halfway\nexit 3\n")
	b.refused(1, []string{"halfway", "status 3"}, "image", "customize", "tiny", "broken", "--script", failing)
	if out := b.ok("ls", "-aq"); out != "" {
		t.Errorf("VMs left: %q", out)
	}
	interrupt := func(after string, args ...string) result {
		t.Helper()
		return b.interrupted(unix.SIGINT, "", after, append([]string{"image", "customize", "tiny", "broken", "--script", script("echo begun; sleep 1000\n")}, args...)...)
	}
	if r := interrupt("begun\n"); r.code != 130 {
		t.Errorf("Ctrl-C: exit code %d\n%s", r.code, r.err)
	}
	if out := b.ok("ls", "-aq"); out != "" {
		t.Errorf("VMs left: %q", out)
	}
	r = interrupt("begun\n", "--keep")
	name := strings.TrimSpace(b.ok("ls", "-aq"))
	if r.code != 130 || name == "" || !strings.Contains(r.err, "is left: interrupted") || !strings.Contains(r.err, "banger exec "+b.inspect(name).Name) {
		t.Errorf("Ctrl-C with --keep: exit code %d, VM %q\n%s", r.code, name, r.err)
	}
	b.ok("rm", "-f", name)
	r = b.run("", "image", "customize", "tiny", "broken", "--keep", "--script", failing)
	name = strings.TrimSpace(b.ok("ls", "-aq"))
	if r.code != 1 || name == "" || !strings.Contains(r.err, "banger exec "+b.inspect(name).Name) {
		t.Errorf("--keep: exit code %d, VM %q\n%s", r.code, name, r.err)
	}
	b.ok("rm", "-f", name)

	// What was done by hand is kept, also where no image can be made of it.
	generations := filepath.Join(b.state, "images", ".generations")
	if err := errors.Join(os.Rename(generations, generations+".away"), os.WriteFile(generations, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	r = b.run("echo by hand > /etc/mark\nexit 0\n", "image", "customize", "tiny", "hand", "--interactive")
	name = strings.TrimSpace(b.ok("ls", "-aq"))
	if r.code != 1 || name == "" || !strings.Contains(r.err, "banger commit --stop "+b.inspect(name).Name+" hand") {
		t.Errorf("interactive, and no image: exit code %d, VM %q\n%s", r.code, name, r.err)
	}
	if err := errors.Join(os.Remove(generations), os.Rename(generations+".away", generations)); err != nil {
		t.Fatal(err)
	}
	b.ok("commit", "--stop", name, "hand")
	b.ok("rm", name)
	if r := b.run("exit 0\n", "image", "customize", "hand", "hand3", "--interactive"); r.code != 0 || r.out != "hand3\n" {
		t.Errorf("interactive: %d\n%s", r.code, r.err)
	}
	if out := b.ok("run", "--rm", "--image", "hand3", "--", "cat", "/etc/mark"); out != "by hand\n" {
		t.Errorf("made by hand is %q", out)
	}
	if out := b.ok("ls", "-aq"); out != "" {
		t.Errorf("VMs left: %q", out)
	}
	r = b.interrupted(unix.SIGTERM, "echo begun >&2\n", "begun\n", "image", "customize", "tiny", "hand2", "--interactive")
	name = strings.TrimSpace(b.ok("ls", "-aq"))
	if r.code != 128+int(unix.SIGTERM) || name == "" || !strings.Contains(r.err, "banger commit --stop "+b.inspect(name).Name+" hand2") {
		t.Errorf("SIGTERM while there is a shell: exit code %d, VM %q\n%s", r.code, name, r.err)
	}
	b.ok("rm", "-f", name)
	if r := b.run("exit 1\n", "image", "customize", "tiny", "hand2", "--interactive"); r.code != 1 || !strings.Contains(r.err, "ended with status 1, so no image is made") {
		t.Errorf("interactive and given up: %d\n%s", r.code, r.err)
	}
	b.refused(1, []string{"no image"}, "image", "customize", "nonesuch", "x", "--script", failing)
	b.refused(1, []string{"no image can be called"}, "image", "customize", "tiny", "X", "--script", failing)
	b.refused(1, []string{"no such file"}, "image", "customize", "tiny", "x", "--script", "/nonesuch")
	b.refused(2, []string{"--script"}, "image", "customize", "tiny", "x")
	for _, name := range []string{"broken", "hand2", "x"} {
		b.refused(1, []string{"no image"}, "image", "inspect", name)
	}
	b.noDraft()
}

// outside runs banger, and the daemon that it starts, in the network namespace in which the
// tests were started.
func (b *banger) outside(args ...string) {
	b.t.Helper()
	c := b.command(args...)
	if os.Getenv(inside) != "" {
		args = append([]string{"--net=/proc/" + strconv.Itoa(os.Getppid()) + "/ns/net", c.Path}, args...)
		c = exec.Command("nsenter", args...)
		c.Env = b.env
	}
	if out, err := c.CombinedOutput(); err != nil {
		b.t.Fatalf("banger %q: %v\n%s", args, err, out)
	}
}

// A manifest with a file and a command becomes an image; with nothing changed it is at once the
// same; a command that fails says so and leaves the image as it was.
func TestImageBuild(t *testing.T) {
	b := newBanger(t)
	dir := t.TempDir()
	manifest := filepath.Join(dir, "image.toml")
	write := func(text string) {
		t.Helper()
		tiny, err := os.ReadFile("../internal/image/manifests/tiny.toml")
		if err != nil {
			t.Fatal(err)
		}
		// Keys of the manifest itself come before its tables.
		if err := os.WriteFile(manifest, append([]byte(text), tiny...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Packages are fetched where there is a mirror, and kept.
	write("")
	b.outside("image", "build", "plain", "-f", manifest)
	b.outside("daemon", "stop")
	write("commands = [\"echo built > /etc/mark\", \"test -f /etc/passwd && echo more >> /etc/mark\"]\n")
	if out := b.ok("image", "build", "site/made:1", "-f", manifest); out != "site/made:1\n" {
		t.Fatalf("build says %q", out)
	}
	made := b.image("site/made:1")
	if made.Stale != "" || len(made.Phases) != 5 || made.Phases[3].Name != "commands" || made.ManifestPath != manifest {
		t.Errorf("made %+v", made)
	}
	if out := b.ok("run", "--rm", "--image", "site/made:1", "--", "cat", "/etc/mark"); out != "built\nmore\n" {
		t.Errorf("in it is %q", out)
	}
	b.ok("image", "build", "site/made:1", "-f", manifest)
	if again := b.image("site/made:1"); again.Digest != made.Digest {
		t.Errorf("without a change it became %s", again.Digest)
	}

	write("commands = [\"echo halfway; exit 3\"]\n")
	if r := b.run("", "image", "ls"); r.code != 0 || !strings.Contains(r.out, "STALE") {
		t.Errorf("ls says %d\n%s", r.code, r.out)
	}
	r := b.run("", "create", "--image", "site/made:1", "--name", "warned")
	if want := "image site/made:1 is stale: its manifest has changed since; to build it anew: banger image build site/made:1 -f " + manifest; r.code != 0 || strings.Count(r.err, want) != 1 {
		t.Errorf("create warns\n%s", r.err)
	}
	b.refused(1, []string{"status 3", "halfway"}, "image", "build", "site/made:1", "-f", manifest)
	if after := b.image("site/made:1"); after.Digest != made.Digest {
		t.Error("a build that failed changed the image")
	}
	if out := strings.Fields(b.ok("ls", "-aq")); len(out) != 1 {
		t.Errorf("VMs are %q", out)
	}
	b.noDraft()

	b.refused(1, []string{"no manifest"}, "image", "build", "nonesuch")
	b.refused(1, []string{"no file"}, "image", "build", "x", "-f", filepath.Join(dir, "nonesuch"))
	b.refused(1, []string{"size"}, "image", "build", "tiny", "--size", "1M")
	for _, name := range []string{"a:b:c", "/x", "x@sha256:0123456789ab", "X", "a//b"} {
		b.refused(1, []string{"no image can be called"}, "image", "build", name, "-f", manifest)
	}
}

// An image whose fstab names the disks that VMs of old had for /home and /var boots whole.
func TestImageOfTheOldLayout(t *testing.T) {
	newBanger(t) // only to skip where there is no bundle
	state := t.TempDir()
	from, to := filepath.Join(os.Getenv("BANGER_RUNTIME_DIR"), "images", "debian"), filepath.Join(state, "images", "old")
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	fs := ""
	for _, e := range entries {
		if out, err := exec.Command("cp", "--sparse=always", filepath.Join(from, e.Name()), to).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if strings.HasSuffix(e.Name(), ".ext4") {
			fs = filepath.Join(to, e.Name())
		}
	}
	fstab := filepath.Join(t.TempDir(), "fstab")
	if err := os.WriteFile(fstab, []byte("/dev/vdb /home ext4 defaults 0 2\n/dev/vdc /var ext4 defaults 0 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(fs, 0o644); err != nil {
		t.Fatal(err)
	}
	edit := exec.Command("debugfs", "-w", "-f", "/dev/stdin", fs)
	edit.Stdin = strings.NewReader("rm /etc/fstab\nwrite " + fstab + " /etc/fstab\n")
	if out, err := edit.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b := bangerIn(t, state)
	r := b.run("", "run", "--rm", "--image", "old", "--", "sh", "-c", "cat /etc/fstab; systemctl is-system-running; findmnt -n /home /var; true")
	if r.code != 0 || !strings.Contains(r.out, "/dev/vdb /home") || !strings.HasSuffix(r.out, "\nrunning\n") {
		t.Errorf("exit code %d: %s\n%s", r.code, r.out, r.err)
	}
}
