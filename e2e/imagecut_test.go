package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/disk/disktest"
	"banger/internal/host"
)

// wholeManifest is one that has every phase.
const wholeManifest = `distribution = "debian"
release = "bookworm"
variant = "minbase"
packages = ["busybox-static"]
size = "1G"
journal = "4M"
commands = ["echo made > /root/mark"]
`

func (b *banger) manifest(text string) (path string) {
	b.t.Helper()
	path = filepath.Join(b.t.TempDir(), "image.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// atWork tells whether anything still works for a build.
func (b *banger) atWork() bool {
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, path := range all {
		// It may have gone meanwhile.
		if environ, _ := os.ReadFile(path); bytes.Contains(environ, []byte("\x00BANGER_WORK="+b.state+"/")) {
			return true
		}
	}
	return false
}

// A build that is cut in any of its phases, by the person who began it or by the end of the daemon,
// leaves nothing half made and nothing at work, and the next one succeeds.
func TestImageBuildIsCut(t *testing.T) {
	if !*long {
		t.Skip("SKIP: it takes minutes; make test-long runs it")
	}
	b := newBanger(t)
	manifest := b.manifest(wholeManifest)
	for _, stage := range []string{"fetching package lists", "extracting packages", "installing essential packages",
		"installing packages", "packing", "filesystem", "commands: 1 of 1", "commands: copying the disk", "checksum"} {
		for _, kind := range []string{"cancelled", "killed"} {
			b.outside("image", "ls") // starts a daemon where the mirrors can be reached
			pid := b.daemonPID()
			ctx, cancel := context.WithCancel(t.Context())
			var once sync.Once
			cut := false
			err := b.client().BuildImage(ctx, api.BuildImage{Name: "cut", Path: manifest}, func(e api.Event) {
				if strings.HasPrefix(e.Stage, stage) {
					once.Do(func() {
						if cut = true; kind == "killed" {
							b.signal(pid, unix.SIGKILL)
						} else {
							cancel()
						}
					})
				}
			})
			cancel()
			if err == nil || !cut {
				t.Errorf("%s in %q (%v): %v", kind, stage, cut, err)
			}
			b.outside("image", "ls")
			eventually(t, kind+" in "+stage+": nothing is half made", func() bool {
				left, err := filepath.Glob(filepath.Join(b.state, "images", ".staging-*"))
				return err == nil && left == nil
			})
			if b.atWork() {
				t.Errorf("%s in %q: something is at work still", kind, stage)
			}
			b.noDraft()
			eventually(t, kind+" in "+stage+": its VM is gone", func() bool { return b.ok("ls", "-aq") == "" })
			b.refused(1, []string{"no image"}, "image", "inspect", "cut")
			b.census()
		}
	}
	b.outside("image", "build", "cut", "-f", manifest)
	if out := b.ok("run", "--rm", "--image", "cut", "--", "cat", "/root/mark"); out != "made\n" {
		t.Errorf("in it is %q", out)
	}
}

// On a disk that is full in one phase or another a build says so, and leaves nothing; and so does
// the copy of a VM's disk.
func TestImageBuildOnAFullDisk(t *testing.T) {
	if !*long {
		t.Skip("SKIP: it takes minutes; make test-long runs it")
	}
	state := tmpfs(t, "100m")
	b := bangerIn(t, state)
	resize := func(mib int) {
		t.Helper()
		if err := unix.Mount("", state, "", unix.MS_REMOUNT, fmt.Sprintf("size=%dm", mib)); err != nil {
			t.Fatal(err)
		}
	}
	manifest := b.manifest(wholeManifest)
	client := b.client()
	b.outside("image", "ls")
	failed := 0
	for mib := 180; ; mib += 110 {
		if mib > 2000 {
			t.Fatal("there is never enough room")
		}
		resize(mib)
		latest := ""
		err := client.BuildImage(t.Context(), api.BuildImage{Name: "whole", Path: manifest}, func(e api.Event) { latest = e.Stage })
		if err == nil {
			break
		}
		failed++
		t.Logf("with %d MiB it came to %q: %v", mib, latest, err)
		if e, ok := err.(*api.Error); !ok || e.Code != "unavailable" || !strings.Contains(e.Hint, "room") {
			t.Errorf("with %d MiB, in %q: %v", mib, latest, err)
		}
		b.noDraft()
		b.refused(1, []string{"no image"}, "image", "inspect", "whole")
		if vms := b.ok("ls", "-aq"); vms != "" {
			t.Errorf("VMs left: %q", vms)
		}
	}
	if failed < 3 {
		t.Errorf("only %d failed", failed)
	}

	resize(2000)
	vm := b.vm("--name", "full")
	b.ok("exec", vm, "--", "sh", "-c", "head -c 60000000 /dev/urandom > /root/file")
	b.ok("stop", vm)
	var s unix.Statfs_t
	if err := unix.Statfs(state, &s); err != nil {
		t.Fatal(err)
	}
	resize(int((s.Blocks-s.Bfree)*uint64(s.Bsize)>>20) + 30)
	b.refused(1, []string{"room"}, "commit", vm, "kept")
	b.noDraft()
	b.refused(1, []string{"no image"}, "image", "inspect", "kept")
	resize(2000)
	b.ok("commit", vm, "kept")
}

// Commands that write more than the host has room for fail, rather than wait for room; with room
// the next try goes on from what was built before them.
func TestImageCommandsOnAFullDisk(t *testing.T) {
	if !*long {
		t.Skip("SKIP: it takes a minute; make test-long runs it")
	}
	state := disktest.MountTmpfs(t, "300m")
	newBanger(t) // only to skip where there is no bundle
	b := bangerIn(t, state)
	tiny, err := os.ReadFile("../internal/image/manifests/tiny.toml")
	if err != nil {
		t.Fatal(err)
	}
	b.outside("image", "build", "plain", "--size", "1G", "-f", b.manifest(string(tiny)))
	b.outside("daemon", "stop")
	nothing := func(image string) {
		t.Helper()
		b.noDraft()
		b.refused(1, []string{"no image"}, "image", "inspect", image)
		if vms := b.ok("ls", "-aq"); vms != "" {
			t.Errorf("VMs left: %q", vms)
		}
	}
	manifest := b.manifest("commands = [\"head -c 600000000 /dev/urandom > /root/file; sync\"]\n" + string(tiny))
	b.refused(1, []string{"disk is full", "make room"}, "image", "build", "large", "--size", "1G", "-f", manifest)
	nothing("large")
	script := b.manifest("head -c 600000000 /dev/urandom > /root/file\n")
	b.refused(1, []string{"the script can't go on", "filesystem is full", "make room"}, "image", "customize", "plain", "large", "--script", script)
	nothing("large")

	// What is written is less than the guest keeps in memory, until it has to write it out in the end.
	room, err := host.FreeBytes(state)
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(state, "ballast")
	if err := os.WriteFile(ballast, make([]byte, room-40<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	late := b.manifest("commands = [\"head -c 60000000 /dev/urandom > /root/file\"]\n" + string(tiny))
	b.refused(1, []string{"disk is full", "make room"}, "image", "build", "late", "--size", "1G", "-f", late)
	nothing("late")
	r := b.run("", "image", "customize", "plain", "late", "--keep", "--script", b.manifest("head -c 60000000 /dev/urandom > /root/file\n"))
	vm := strings.TrimSpace(b.ok("ls", "-aq"))
	if r.code != 1 || vm == "" || !strings.Contains(r.err, "is left: the script can't go on") || !strings.Contains(r.err, "banger resume "+b.inspect(vm).Name) {
		t.Errorf("with --keep: exit code %d, VM %q\n%s", r.code, vm, r.err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	b.ok("resume", vm)
	b.ok("commit", "--stop", vm, "late")
	b.ok("run", "--rm", "--image", "late", "--", "test", "-s", "/root/file")
	b.ok("rm", vm)
	if err := unix.Mount("", state, "", unix.MS_REMOUNT, "size=2g"); err != nil {
		t.Fatal(err)
	}
	b.ok("image", "build", "large", "--size", "1G", "-f", manifest)
	if i := b.image("large"); i.AllocatedBytes < 500<<20 {
		t.Errorf("it has %d bytes", i.AllocatedBytes)
	}
}
