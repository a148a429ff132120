package image

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/image/apt"
	"banger/internal/image/shelf"
)

func quiet(string, int64, int64) {}

// needBuild skips where images can't be built at all.
func needBuild(t *testing.T) {
	t.Helper()
	for _, program := range []string{"mmdebstrap", "mkfs.ext4", "debugfs"} {
		if _, err := host.LookPath(program); err != nil {
			t.Skipf("SKIP: this host has no %s", program)
		}
	}
	if _, err := apt.HostSources(apt.Etc, "bookworm"); err != nil {
		t.Skip("SKIP: the apt sources of this host have no mirror of Debian bookworm")
	}
}

func debugfs(t *testing.T, image, command string) string {
	t.Helper()
	out, err := host.Output(t.Context(), host.Command{Path: "debugfs", Args: []string{"-R", command, image}})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// emptyStore is a store without a bundle.
func emptyStore(t *testing.T) *Store {
	return NewStore(filepath.Join(t.TempDir(), "images"), func() (string, error) { return "", errs.New(errs.Unavailable, "no bundle") })
}

// nothingHalf looks for what builds have left, and for other images than those wanted.
func nothingHalf(t *testing.T, s *Store, want string) {
	t.Helper()
	if left, err := s.Leftovers(); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	if got := titles(t, s); got != want {
		t.Errorf("there are %q, want %q", got, want)
	}
}

// told keeps the names of the stages that a build tells of.
type told []string

func (s *told) progress(stage string, _, _ int64) {
	if !slices.Contains(*s, stage) {
		*s = append(*s, stage)
	}
}

func TestBuildTiny(t *testing.T) {
	needBuild(t)
	m, err := BuiltIn("tiny")
	if err != nil {
		t.Fatal(err)
	}
	s := emptyStore(t)
	var stages told
	img, err := s.Build(t.Context(), "tiny", m, BuildOptions{Etc: apt.Etc}, stages.progress)
	if err != nil {
		t.Fatal(err)
	}
	nothingHalf(t, s, "tiny")
	for _, want := range []string{"downloading packages", "filesystem", "checksum"} {
		if !slices.Contains(stages, want) {
			t.Errorf("no stage %q in %q", want, stages)
		}
	}
	if len(img.Packages) != 1 || img.Packages[0].Name != "busybox-static" || img.Packages[0].Version == "" {
		t.Errorf("packages are %v", img.Packages)
	}
	info, err := os.Stat(img.Path)
	if err != nil || info.Mode() != 0o444 || info.Size() != img.VirtualBytes {
		t.Errorf("the file: %v, %v", info, err)
	}
	if sum, _, err := shelf.Checksum(t.Context(), img.Path, nil); err != nil || sum != img.SHA256 {
		t.Errorf("its checksum is %s (%v), not %s", sum, err, img.SHA256)
	}
	if img.AllocatedBytes > 12<<20 {
		t.Errorf("it takes %d bytes", img.AllocatedBytes)
	}
	sound(t, img.Path)
	// debugfs -R "ls -p": /inode/mode/uid/gid/name/size/
	rootDir := debugfs(t, img.Path, "ls -p /")
	for _, want := range []string{"/040755/0/0/bin//", "/041777/0/0/tmp//", "/040700/0/0/root//", "/040755/0/0/proc//"} {
		if !strings.Contains(rootDir, want) {
			t.Errorf("no %s in\n%s", want, rootDir)
		}
	}
	if got := debugfs(t, img.Path, "stat /bin/sh"); !strings.Contains(got, `Fast link dest: "/bin/busybox"`) {
		t.Errorf("/bin/sh is\n%s", got)
	}
	if got := debugfs(t, img.Path, "stat /bin/busybox"); !strings.Contains(got, "Mode:  0755") || !strings.Contains(got, "User:     0   Group:     0") {
		t.Errorf("/bin/busybox is\n%s", got)
	}
	if got := debugfs(t, img.Path, "cat /etc/passwd"); !strings.HasPrefix(got, "root:x:0:0:") {
		t.Errorf("/etc/passwd is\n%s", got)
	}
	if got := debugfs(t, img.Path, "stat /sbin/init"); strings.Contains(got, "Inode:") {
		t.Errorf("there is an init:\n%s", got)
	}
}

// testManifest writes a manifest of an image that is built fast, with more lines.
func testManifest(t *testing.T, packages, more string) Manifest {
	t.Helper()
	m, err := ParseManifest([]byte("distribution = \"debian\"\nrelease = \"bookworm\"\nvariant = \"extract\"\nsize = \"16M\"\njournal = \"4M\"\npackages = [" + packages + "]\n" + more))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// workshop runs no machine: what the commands would do is to write their text to a file.
type workshop struct {
	ran  []string
	fail error
}

func (w *workshop) Run(ctx context.Context, base Image, commands []string, path string, progress Progress) error {
	w.ran = append(w.ran, commands...)
	if w.fail != nil {
		return w.fail
	}
	return host.Run(ctx, host.Command{Path: "cp", Args: []string{"--sparse=always", base.Path, path}})
}

// TestBuildPhases changes a manifest step by step and looks at which phases run.
func TestBuildPhases(t *testing.T) {
	needBuild(t)
	s := emptyStore(t)
	w := &workshop{}
	build := func(m Manifest, refresh bool) (Image, []string, []string) {
		t.Helper()
		var stages told
		w.ran = nil
		i, err := s.Build(t.Context(), "x", m, BuildOptions{Etc: apt.Etc, Workshop: w, Refresh: refresh}, stages.progress)
		if err != nil {
			t.Fatal(err)
		}
		return i, stages, w.ran
	}
	installs := func(stages []string) bool { return slices.Contains(stages, "downloading packages") }
	const busybox = `"busybox-static"`
	first, stages, _ := build(testManifest(t, busybox, ""), false)
	if !installs(stages) {
		t.Errorf("at first: %q", stages)
	}
	again, stages, _ := build(testManifest(t, busybox, ""), false)
	if len(stages) != 0 || again.Digest != first.Digest {
		t.Errorf("without a change: %q, %s", stages, again.Digest)
	}
	files, stages, ran := build(testManifest(t, busybox, "[[file]]\npath = \"/etc/motd\"\ncontent = \"hello\"\n"), false)
	if installs(stages) || len(ran) != 0 || debugfs(t, files.Path, "cat /etc/motd") != "hello" {
		t.Errorf("with a file: %q", stages)
	}
	withCommands := "commands = [\"one\", \"two\"]\n"
	commands, stages, ran := build(testManifest(t, busybox, withCommands), false)
	if installs(stages) || !slices.Equal(ran, []string{"one", "two"}) || len(commands.Packages) != 0 || phaseHash(commands.Phases, phaseCommands) == "" {
		t.Errorf("with commands: %q, ran %q, packages %v", stages, ran, commands.Packages)
	}
	_, stages, ran = build(testManifest(t, busybox, "commands = [\"three\"]\n"), false)
	if slices.Contains(stages, phaseFiles) || !slices.Equal(ran, []string{"three"}) {
		t.Errorf("with other commands: %q, ran %q", stages, ran)
	}
	refreshed, stages, _ := build(testManifest(t, busybox, ""), true)
	if !installs(stages) || refreshed.Digest == first.Digest {
		t.Errorf("refreshed: %q", stages)
	}

	w.fail = errs.New(errs.Invalid, "a command ended with status 3")
	if _, err := s.Build(t.Context(), "x", testManifest(t, busybox, withCommands), BuildOptions{Etc: apt.Etc, Workshop: w}, quiet); !errors.Is(err, w.fail) {
		t.Errorf("a command that fails: %v", err)
	}
	if i, err := s.Get("x"); err != nil || i.Digest != refreshed.Digest {
		t.Errorf("then the name means %+v, %v", i, err)
	}
	if left, err := s.Leftovers(); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestOutputsAreBounded(t *testing.T) {
	o := outputs{filepath.Join(t.TempDir(), "outputs")}
	for _, n := range []string{"old", "used", "new"} {
		if _, err := o.put("p", n, file(t, t.TempDir(), strings.Repeat(n, 3000))); err != nil {
			t.Fatal(err)
		}
		long := time.Now().Add(-48 * time.Hour)
		if err := os.Chtimes(o.path("p", n), long, long); err != nil {
			t.Fatal(err)
		}
	}
	if _, there := o.get("p", "used"); !there {
		t.Error("what was put is not there")
	}
	if err := o.evict(1, time.Hour); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(o.dir + "/*")
	if err != nil || len(left) != 1 || left[0] != o.path("p", "used") {
		t.Errorf("left are %q, %v", left, err)
	}
}

func TestBuildFails(t *testing.T) {
	needBuild(t)
	etc := func(line string) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(line), 0o644); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	large := filepath.Join(t.TempDir(), "large") // than the least filesystem, of 128 MiB
	noise := make([]byte, 1<<20)
	rand.Read(noise) // never fails
	if err := os.WriteFile(large, bytes.Repeat(noise, 140), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, etc string
		m         Manifest
		kind      errs.Kind
		want      string
	}{
		{"no such package", apt.Etc, testManifest(t, `"busybox-static", "no-such-package"`, ""), errs.Invalid, "Unable to locate package no-such-package"},
		{"file not in the packages", apt.Etc, testManifest(t, `"busybox-static"`, `keep = ["/bin/zsh"]`), errs.Internal, "none of the packages has /bin/zsh"},
		{"too small", apt.Etc, testManifest(t, `"busybox-static"`, fmt.Sprintf("[[file]]\npath = \"/x\"\nsource = %q\n", large)), errs.Invalid, "do not fit"},
		{"no mirror", t.TempDir(), testManifest(t, `"busybox-static"`, ""), errs.Unavailable, "no mirror"},
		{"mirror does not answer", etc("deb http://127.0.0.1:1/debian bookworm main\n"), testManifest(t, `"busybox-static"`, ""), errs.Unavailable, "127.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := emptyStore(t)
			_, err := s.Build(t.Context(), "x", c.m, BuildOptions{Etc: c.etc}, quiet)
			if errs.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v (%s), want %s with %q", err, errs.KindOf(err), c.kind, c.want)
			}
			nothingHalf(t, s, "")
		})
	}
}

// An installation that fails when its archive is whole is none, although a filesystem could be
// made of that.
func TestBuildThatFailsAtItsEnd(t *testing.T) {
	needBuild(t)
	real, err := host.LookPath("mmdebstrap")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n%s \"$@\"\necho E: rm failed >&2\nexit 1\n", real)
	if err := os.WriteFile(filepath.Join(dir, "mmdebstrap"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	s := emptyStore(t)
	_, err = s.Build(t.Context(), "x", testManifest(t, `"busybox-static"`, ""), BuildOptions{Etc: apt.Etc}, quiet)
	if err == nil || !strings.Contains(err.Error(), "rm failed") {
		t.Errorf("it says %v", err)
	}
	nothingHalf(t, s, "")
	if kept, _ := filepath.Glob(filepath.Join(s.dir, outputsDir, "*")); kept != nil {
		t.Errorf("kept: %q", kept)
	}
}

// mmdebstrap names the program that failed; that the disk is full is said before.
func TestBuildIsToldThatTheDiskIsFull(t *testing.T) {
	needBuild(t)
	dir := t.TempDir()
	script := "#!/bin/sh\necho 'tar: ./x: Cannot write: No space left on device' >&2\necho 'E: tar --extract failed: 512' >&2\nexit 1\n"
	if err := os.WriteFile(filepath.Join(dir, "mmdebstrap"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	s := emptyStore(t)
	_, err := s.Build(t.Context(), "x", testManifest(t, `"busybox-static"`, ""), BuildOptions{Etc: apt.Etc}, quiet)
	if errs.KindOf(err) != errs.Unavailable || !strings.Contains(errs.HintOf(err), "make room") {
		t.Errorf("it says %v (%s)", err, errs.HintOf(err))
	}
	nothingHalf(t, s, "")
}

// TestBuildIsCancelled gives up in each stage of a build: nothing is left of it but what
// phases that were finished have made.
func TestBuildIsCancelled(t *testing.T) {
	needBuild(t)
	s := emptyStore(t)
	m := testManifest(t, `"busybox-static"`, "")
	build := func(at string) error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, err := s.Build(ctx, "x", m, BuildOptions{Etc: apt.Etc}, func(stage string, _, _ int64) {
			if stage == at {
				cancel()
			}
		})
		return err
	}
	for _, stage := range []string{"fetching package lists", "downloading packages", "extracting packages", "packing", phaseFilesystem, "checksum"} {
		if stage == "packing" { // what the stages before have made is not kept until then
			if got, err := filepath.Glob(filepath.Join(s.dir, outputsDir, "*")); err != nil || got != nil {
				t.Errorf("kept too early: %q, %v", got, err)
			}
		}
		if err := build(stage); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled in stage %q: %v", stage, err)
		}
		nothingHalf(t, s, "")
	}
	if err := build("none"); err != nil {
		t.Errorf("at last: %v", err)
	}
	nothingHalf(t, s, "x")
}

// TestBuildOnAFullDisk builds where there is ever more room, until it is enough: before, it
// says what is lacking, and leaves nothing.
func TestBuildOnAFullDisk(t *testing.T) {
	needBuild(t)
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root can mount a small filesystem")
	}
	for mib := 4; ; mib = mib*3/2 + 8 {
		if mib > 1<<10 {
			t.Fatal("there is never enough room")
		}
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755", mib)); err != nil {
			t.Skipf("SKIP: this host lets nobody mount a tmpfs: %v", err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		s := NewStore(filepath.Join(dir, "images"), func() (string, error) { return "", errs.New(errs.Unavailable, "no bundle") })
		_, err := s.Build(t.Context(), "x", testManifest(t, `"busybox-static"`, ""), BuildOptions{Etc: apt.Etc}, quiet)
		if err == nil {
			nothingHalf(t, s, "x")
			return
		}
		if errs.KindOf(err) != errs.Unavailable || !strings.Contains(errs.HintOf(err), "make room") {
			t.Errorf("with %d MiB: %v (%s)", mib, err, errs.HintOf(err))
		}
		nothingHalf(t, s, "")
	}
}

// Two that ask for the same at the same time get the same.
func TestBuildsOfOneImage(t *testing.T) {
	needBuild(t)
	s := emptyStore(t)
	m := testManifest(t, `"busybox-static"`, "")
	var digests [3]string
	var wg sync.WaitGroup
	for n := range digests {
		wg.Go(func() {
			i, err := s.Build(t.Context(), "x", m, BuildOptions{Etc: apt.Etc}, quiet)
			if err != nil {
				t.Error(err)
			}
			digests[n] = i.Digest
		})
	}
	wg.Wait()
	if digests[0] != digests[1] || digests[0] != digests[2] {
		t.Errorf("they got %q", digests)
	}
	nothingHalf(t, s, "x")
}
