package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
)

// counter is a small VM that counts.
func (b *banger) counter(flags ...string) string {
	b.t.Helper()
	name := b.vm(slices.Concat(shape[2:], flags)...)
	b.ok("exec", name, "--", "sh", "-c", counting)
	return name
}

func (b *banger) countsTo(name, want string) {
	b.t.Helper()
	if got := strings.TrimSpace(b.ok("exec", name, "--", "sh", "-c", count)); got != want {
		b.t.Errorf("%s counts to %q, not %s", name, got, want)
	}
}

// A machine that there is no room for is not kept, and nothing is left of the attempt; the VM goes on.
func TestAMachineForWhichThereIsNoRoom(t *testing.T) {
	b := bangerIn(t, tmpfs(t, "250m"))
	a := b.counter()
	b.fill()
	ballast := filepath.Join(b.state, "ballast")
	info, err := os.Stat(ballast)
	if err == nil {
		err = os.Truncate(ballast, info.Size()-(18<<20)) // less than what the guest has in memory
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, args := range [][]string{{"snapshot", a}, {"suspend", a}, {"fork", a}} {
		b.refused(1, []string{"no space left"}, args...)
		b.countsTo(a, string(rune('1'+i)))
		b.census()
		for _, pattern := range []string{"templates/*", "templates/.*", "vms/*/kept"} {
			if left, err := filepath.Glob(filepath.Join(b.state, pattern)); err != nil || len(left) > 0 {
				t.Errorf("%q has left %q, %v", args, left, err)
			}
		}
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	b.ok("suspend", a)
	b.ok("resume", a)
	b.countsTo(a, "4")
}

// A bit that flips in any file of what is saved of machines is found before a guest goes on from
// it. A VM of a template boots then; what can't boot, because it was in use, says why.
func TestFlippedBits(t *testing.T) {
	if !*long {
		t.Skip("SKIP: make test-long runs it")
	}
	b := warm(t)
	files := []string{"memory", "state", "root.qcow2", "template.json", "template.sum"}
	for _, file := range files {
		b.ok(append([]string{"template", "build"}, shape[1:]...)...)
		i := slices.IndexFunc(b.templates(), func(x api.Template) bool { return !x.Retired })
		flip(t, filepath.Join(b.templates()[i].Path, file))
		if v := b.inspect(b.vm(slices.Concat(shape[2:], []string{"--name", "boots"})...)); v.Start.Kind != "cold" {
			t.Errorf("with a flipped bit in %s: %+v", file, v.Start)
		}
		b.ok("rm", "-f", "boots")
	}
	a := b.counter("--name", "a")
	for _, file := range files {
		b.ok("snapshot", a, "kept")
		flip(t, filepath.Join(b.state, "templates", "kept", file))
		b.refused(125, []string{"kept"}, "run", "-d", "--name", "later", "--from", "kept")
		b.ok("snapshot", "ls")
		b.ok("snapshot", "rm", "kept")
	}
	b.countsTo(a, "1")
	for _, file := range []string{"memory", "state", "sums"} {
		b.ok("suspend", a)
		path := filepath.Join(b.inspect(a).Directory, "kept", file)
		flip(t, path)
		b.refused(1, []string{"has changed", "start --fresh " + a}, "resume", a)
		flip(t, path)
		b.ok("resume", a)
	}
	b.countsTo(a, "2")
}

// elsewhere starts the daemon where one file is another.
func (b *banger) elsewhere(path string, content []byte) {
	b.t.Helper()
	other := filepath.Join(b.t.TempDir(), filepath.Base(path))
	if err := os.WriteFile(other, content, 0o755); err != nil {
		b.t.Fatal(err)
	}
	b.ok("daemon", "stop")
	c := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$1" "$2" && exec "$3" daemon start`, "sh", other, path, filepath.Join(b.bin, "banger"))
	c.Env = b.env
	if out, err := c.CombinedOutput(); err != nil {
		b.t.Fatalf("start the daemon with another %s: %v\n%s", path, err, out)
	}
}

// What is saved belongs to a QEMU and a kind of CPU. With another VMs boot, what can't boot says so,
// and all is well again once it is back.
func TestWhatIsSavedStaysWithItsHost(t *testing.T) {
	if !*long {
		t.Skip("SKIP: make test-long runs it")
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIP: it takes root to replace files of the host")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("SKIP: ", err)
	}
	program, err := os.ReadFile(qemu)
	if err != nil {
		t.Fatal(err)
	}
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	b := warm(t)
	b.ok(append([]string{"template", "build"}, shape[1:]...)...)
	a, away := b.counter("--name", "a"), b.counter("--name", "away")
	b.ok("snapshot", a, "kept")
	b.ok("suspend", away)
	for _, other := range []struct {
		path    string
		content []byte
	}{
		{qemu, append(program, "upgraded"...)},
		{"/proc/cpuinfo", bytes.ReplaceAll(cpus, []byte("cpu family\t: "), []byte("cpu family\t: 9"))},
	} {
		b.elsewhere(other.path, other.content)
		if v := b.inspect(b.vm(slices.Concat(shape[2:], []string{"--name", "boots"})...)); v.Start.Kind != "cold" {
			t.Errorf("with another %s: %+v", other.path, v.Start)
		}
		b.refused(125, []string{"no template"}, slices.Concat([]string{"run", "--rm", "--warm"}, shape, []string{"true"})...)
		b.refused(125, []string{"can't go on from snapshot kept", "another machine"}, "run", "-d", "--from", "kept")
		b.refused(1, []string{"another machine", "start --fresh " + away}, "resume", away)
		b.refused(1, []string{"another machine", "restart " + a}, "snapshot", a)
		b.ok("rm", "-f", "boots")
		b.census()
	}
	b.ok("daemon", "stop")
	if v := b.inspect(b.vm(slices.Concat(shape[2:], []string{"--name", "warm", "--warm"})...)); v.Start.Kind != "warm" {
		t.Errorf("with what it was made with again: %+v", v.Start)
	}
	b.ok("run", "-d", "--name", "later", "--from", "kept")
	b.countsTo("later", "1")
	b.ok("snapshot", "rm", "kept")
	b.ok("resume", away)
	b.countsTo(away, "1")
	b.countsTo(a, "1")
}

// A base image that is gone is missed by what goes on from a snapshot, and said to be; a VM that only
// wants the image has never known it.
func TestABaseImageThatIsGone(t *testing.T) {
	if !*long {
		t.Skip("SKIP: make test-long runs it")
	}
	state := t.TempDir()
	b := bangerWithImage(t, state)
	b.ok("image", "ls")
	a := b.counter()
	b.ok("snapshot", a, "kept")
	b.refused(1, []string{"in use by"}, "image", "rm", "tiny")
	b.ok("rm", "-f", a)
	b.refused(1, []string{"snapshot kept", "banger snapshot rm kept"}, "image", "rm", "tiny")
	bases, err := filepath.Glob(filepath.Join(state, "images", "tiny", "*.ext4"))
	if err != nil || len(bases) != 1 {
		t.Fatalf("%q, %v", bases, err)
	}
	if err := unix.Rename(bases[0], bases[0]+".away"); err != nil {
		t.Fatal(err)
	}
	b.refused(125, []string{"is gone"}, "run", "-d", "--from", "kept")
	if err := unix.Rename(bases[0]+".away", bases[0]); err != nil {
		t.Fatal(err)
	}
	b.ok("run", "-d", "--name", "later", "--from", "kept")
	b.ok("rm", "-f", "later")
	b.ok("snapshot", "rm", "kept")
	b.ok("image", "rm", "tiny")
}

// whole checks the filesystem on the disk of a VM that does not run.
func (b *banger) whole(name string) {
	b.t.Helper()
	raw := filepath.Join(b.t.TempDir(), "raw")
	v := b.inspect(name)
	disks, err := filepath.Glob(filepath.Join(v.Directory, "root.*"))
	if err != nil || len(disks) != 1 {
		b.t.Fatalf("%s has the disks %q, %v", name, disks, err)
	}
	format := strings.TrimPrefix(filepath.Ext(disks[0]), ".")
	if out, err := exec.Command("qemu-img", "convert", "-f", format, "-O", "raw", disks[0], raw).CombinedOutput(); err != nil {
		b.t.Fatalf("qemu-img convert %s: %v\n%s", disks[0], err, out)
	}
	if out, err := exec.Command("e2fsck", "-fn", raw).CombinedOutput(); err != nil {
		b.t.Errorf("the disk of %s: %v\n%s", name, err, out)
	}
	if err := os.Remove(raw); err != nil {
		b.t.Error(err)
	}
}
