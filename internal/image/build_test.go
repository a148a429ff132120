package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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

func nothingLeft(t *testing.T, root string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(root)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("in the directory of images: %q (%v), want %q", got, err, want)
	}
}

func TestBuildTiny(t *testing.T) {
	needBuild(t)
	m, err := BuiltIn("tiny")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "images")
	var stages []string
	img, err := Build(t.Context(), root, m, func(stage string, done, total int64) {
		if !slices.Contains(stages, stage) {
			stages = append(stages, stage)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, root, "tiny")
	for _, want := range []string{"downloading packages", "unpacking", "making the filesystem", "checksum"} {
		if !slices.Contains(stages, want) {
			t.Errorf("no stage %q in %q", want, stages)
		}
	}
	if got, err := Get("tiny", root); err != nil || got.Path != img.Path || got.SHA256 != img.SHA256 {
		t.Errorf("got %+v, %v", got, err)
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
	if err := host.Run(t.Context(), host.Command{Path: "e2fsck", Args: []string{"-f", "-n", img.Path}}); err != nil {
		t.Errorf("the filesystem: %v", err)
	}
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

	if _, err := Build(t.Context(), root, m, quiet); errs.KindOf(err) != errs.Conflict {
		t.Errorf("built twice: %v", err)
	}
	if err := images.Remove(root, "tiny"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, root)
}

func TestBuildFails(t *testing.T) {
	needBuild(t)
	manifest := func(packages, more string) Manifest {
		m, err := ParseManifest([]byte("name = \"x\"\ndistribution = \"debian\"\nrelease = \"bookworm\"\nvariant = \"extract\"\nsize = \"16M\"\njournal = \"4M\"\npackages = [" + packages + "]\n" + more))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	etc := func(line string) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(line), 0o644); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for _, c := range []struct {
		name, etc string
		m         Manifest
		kind      errs.Kind
		want      string
	}{
		{"no such package", apt.Etc, manifest(`"busybox-static", "no-such-package"`, ""), errs.Invalid, "Unable to locate package no-such-package"},
		{"file not in the packages", apt.Etc, manifest(`"busybox-static"`, `keep = ["/bin/zsh"]`), errs.Internal, "none of the packages has /bin/zsh"},
		{"too small", apt.Etc, manifest(`"busybox-static", "python3-minimal", "libpython3.11-stdlib"`, ""), errs.Invalid, "mkfs.ext4"},
		{"no mirror", t.TempDir(), manifest(`"busybox-static"`, ""), errs.Unavailable, "no mirror"},
		{"mirror does not answer", etc("deb http://127.0.0.1:1/debian bookworm main\n"), manifest(`"busybox-static"`, ""), errs.Unavailable, "127.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "images")
			_, err := build(t.Context(), c.etc, root, c.m, false, quiet)
			if errs.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v (%s), want %s with %q", err, errs.KindOf(err), c.kind, c.want)
			}
			nothingLeft(t, root)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		root := filepath.Join(t.TempDir(), "images")
		ctx, cancel := context.WithCancel(t.Context())
		_, err := Build(ctx, root, manifest(`"busybox-static"`, ""), func(stage string, done, total int64) {
			if stage == "fetching package lists" {
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		nothingLeft(t, root)
	})
}
