// Package packaging has tests of what is installed: by make install, and by the Debian package.
package packaging

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func run(t *testing.T, dir string, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	return string(out)
}

// filesIn lists all that is below root and no directory, but for what matches ignore.
func filesIn(t *testing.T, root string, ignore ...string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, root)
		for _, i := range ignore {
			if err == nil && strings.HasPrefix(rel, i) {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
		}
		if err == nil && !d.IsDir() {
			paths = append(paths, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// make install puts programs that work anywhere, without the checkout; make uninstall takes
// exactly that away.
func TestMakeInstall(t *testing.T) {
	if os.Getenv("BANGER_RUNTIME_DIR") == "" {
		t.Skip("SKIP: make test runs it, for it builds all programs")
	}
	dest, absent := t.TempDir(), filepath.Join(t.TempDir(), "absent")
	mine := filepath.Join(dest, "opt/b/share/doc/banger/mine")
	if err := os.MkdirAll(filepath.Dir(mine), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mine, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"make", "-s", "-C", "..", "PREFIX=/opt/b", "DESTDIR=" + dest, "RUNTIME=" + absent, "STAGE=" + filepath.Join(t.TempDir(), "stage")}
	run(t, ".", append(args, "install")...)
	got := filesIn(t, dest)
	for _, want := range []string{"bin/banger", "bin/bangerd", "bin/banger-guest", "share/man/man1/banger-run.1", "share/bash-completion/completions/banger",
		"share/zsh/site-functions/_banger", "share/fish/vendor_completions.d/banger.fish", "lib/systemd/system/bangerd.service", "lib/systemd/system/bangerd.socket",
		"lib/systemd/user/bangerd.service", "lib/tmpfiles.d/banger.conf", "share/doc/banger/config.toml.example"} {
		if !slices.Contains(got, "/opt/b/"+want) {
			t.Errorf("%s is not installed", want)
		}
	}
	banger := filepath.Join(dest, "opt/b/bin/banger")
	var v struct{ Version, Commit, Date string }
	cmd := exec.Command(banger, "version", "--json")
	cmd.Dir = "/"
	cmd.Env = []string{"BANGER_STATE_DIR=" + t.TempDir(), "BANGER_CONFIG=/dev/null"}
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &v)
	}
	if err != nil || v.Version == "" || len(v.Commit) != 40 || !strings.HasSuffix(v.Date, "Z") {
		t.Fatalf("it says %s: %v", out, err)
	}
	told, err := exec.Command(filepath.Join(dest, "opt/b/bin/bangerd"), "-version").Output()
	if want := "bangerd " + v.Version + " (" + v.Commit[:12] + ", " + v.Date + ")\n"; err != nil || string(told) != want {
		t.Errorf("the daemon says %q: %v; want %q", told, err, want)
	}
	for _, program := range []string{"banger", "bangerd"} {
		b, err := os.ReadFile(filepath.Join(dest, "opt/b/bin", program))
		wd, werr := filepath.Abs("..")
		if err != nil || werr != nil || strings.Contains(string(b), wd+"/internal") {
			t.Errorf("%s knows of the checkout: %v", program, err)
		}
	}
	run(t, ".", append(args, "uninstall")...)
	if left := filesIn(t, dest); !slices.Equal(left, []string{"/opt/b/share/doc/banger/mine"}) {
		t.Errorf("make uninstall leaves %v", left)
	}
}

// A bundle that VMs' disks may be based on is replaced by the daemon that knows of them, and no
// other is asked, or started, where a package is made.
func TestInstallBundle(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b")
	state, to, stage := filepath.Join(dir, "state"), filepath.Join(dir, "lib/banger"), filepath.Join(dir, "stage")
	script := func(whose string) string {
		return "#!/bin/sh\n[ \"$1 $2\" != \"runtime path\" ] || { echo \"$THERE\"; exit; }\necho " + whose + " \"$*\" \"$BANGER_STATE_DIR\"\n"
	}
	for path, content := range map[string]string{
		filepath.Join(dir, "bin/banger"): script("installed"), filepath.Join(stage, "banger"): script("staged"),
		filepath.Join(state, "banger.db"): "", filepath.Join(to, "bundle.json"): "",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ there, dest, state, by string }{
		{to, "", state, "installed"}, {dir, "", state, "staged"}, {to, dir, state, "staged"}, {to, "", filepath.Join(dir, "none"), "staged"},
	} {
		out := run(t, ".", "env", "THERE="+c.there, "DESTDIR="+c.dest, "BANGER_STATE_DIR="+c.state, "./install-bundle.sh", stage, to, "/from here")
		line, _, _ := strings.Cut(out, "\n")
		if !strings.HasPrefix(line, c.by+" runtime install /from here --allow-downgrade") || strings.HasSuffix(line, state) != (c.by == "installed") {
			t.Errorf("%+v: %s", c, out)
		}
	}
}

// TestDeb installs the package on a Debian that has never seen it, upgrades, removes and
// purges it. It is run by make test-long, which makes the package.
func TestDeb(t *testing.T) {
	debs, err := filepath.Glob("../build/banger_*.deb")
	if err != nil || len(debs) == 0 {
		t.Skip("SKIP: there is no package; make deb builds it")
	}
	images, err := filepath.Glob("../runtime/images/debian/rootfs-*.ext4")
	if err != nil || len(images) == 0 {
		t.Skip("SKIP: there is no image of Debian; make guests builds it")
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root can change its root directory")
	}
	dir := t.TempDir()
	base, upper, root := filepath.Join(dir, "base"), filepath.Join(dir, "upper"), filepath.Join(dir, "root")
	for _, d := range []string{base, upper, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(argv ...string) {
		t.Helper()
		run(t, ".", append([]string{"mount"}, argv...)...)
		at := argv[len(argv)-1]
		t.Cleanup(func() {
			if err := unix.Unmount(at, 0); err != nil {
				t.Error(err)
			}
		})
	}
	mount("-o", "ro,loop,noload", images[0], base)
	mount("-t", "tmpfs", "tmpfs", upper)
	for _, d := range []string{"up", "work"} {
		if err := os.Mkdir(filepath.Join(upper, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount("-t", "overlay", "-o", "lowerdir="+base+",upperdir="+upper+"/up,workdir="+upper+"/work", "overlay", root)
	deb := debs[len(debs)-1]
	run(t, ".", "cp", deb, filepath.Join(root, "banger.deb"))
	volatile := []string{"/dev", "/var/lib/dpkg", "/var/log", "/var/cache", "/banger.deb"}
	before := filesIn(t, root, volatile...)
	chroot := func(argv ...string) string {
		t.Helper()
		return run(t, ".", append([]string{"chroot", root}, argv...)...)
	}
	install := []string{"dpkg", "--force-depends", "--install", "/banger.deb"} // what it depends on is not there
	chroot(install...)
	if out := chroot("env", "BANGER_STATE_DIR=/tmp/s", "banger", "version"); !strings.HasPrefix(out, "banger ") {
		t.Errorf("it says %q", out)
	}
	if info, err := os.Stat(filepath.Join(root, "var/lib/banger")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the state directory: %v, %v", info, err)
	}
	// What users have put there stays at an upgrade and a removal, and goes with a purge.
	for _, path := range []string{"var/lib/banger/banger.db", "usr/lib/banger/bundle.json"} {
		if err := os.WriteFile(filepath.Join(root, path), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept := func(when string, want bool) {
		for _, path := range []string{"var/lib/banger/banger.db", "usr/lib/banger/bundle.json"} {
			if _, err := os.Stat(filepath.Join(root, path)); (err == nil) != want {
				t.Errorf("after %s %s: %v", when, path, err)
			}
		}
	}
	chroot(install...)
	kept("an upgrade", true)
	chroot("dpkg", "--remove", "banger")
	kept("the removal", true)
	chroot("dpkg", "--purge", "banger")
	kept("the purge", false)
	after := filesIn(t, root, append(volatile, "/tmp/s")...)
	if added := slices.DeleteFunc(after, func(p string) bool { return slices.Contains(before, p) }); len(added) > 0 {
		t.Errorf("a purge leaves %v", added)
	}
}
