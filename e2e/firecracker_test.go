package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/host"
	"banger/internal/jail"
)

// needFirecracker skips a test on a host that can't run it; the lab can.
func needFirecracker(t *testing.T) {
	t.Helper()
	if _, err := host.LookPath("firecracker"); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	if kvm := host.ProbeKVM("/"); !kvm.Usable {
		t.Skipf("SKIP: no KVM: %s", kvm.Reason)
	}
	if _, err := os.Stat("/dev/mapper/control"); err != nil {
		t.Skipf("SKIP: no device-mapper: %v", err)
	}
}

// Firecracker runs VMs with snapshots of one image as their disks and TAPs on the bridge, and
// all is as with QEMU.
func TestFirecracker(t *testing.T) {
	needFirecracker(t)
	b := bridged(t)
	if got := b.run("", "doctor").out; !strings.Contains(got, "Firecracker 1.") || !strings.Contains(got, "KVM works here") {
		t.Errorf("doctor says %q", got)
	}
	// It is what a host like this one uses without being asked.
	b.vm("--name", "a", "-p", "18080:80")
	b.vm("--name", "b", "--backend", "firecracker")
	for _, name := range []string{"a", "b"} {
		if v := b.inspect(name); v.Backend != "firecracker" || v.Accel != "kvm" || v.Disk.Driver != "dm" || v.Network.Mode != "bridge" {
			t.Fatalf("%s: %+v", name, v)
		}
	}
	t.Run("confinement", func(t *testing.T) { testFirecrackerConfined(t, b) })
	t.Run("disks", func(t *testing.T) {
		b.ok("exec", "a", "--", "sh", "-c", "head -c 20000000 /dev/urandom >/root/file && md5sum /root/file >/root/sum && sync")
		if r := b.run("", "exec", "b", "--", "ls", "/root/sum"); r.code == 0 {
			t.Error("what one VM writes the other reads")
		}
	})
	t.Run("network", func(t *testing.T) {
		b.server("a", "80")
		if got := b.fetch("b"); got != "hello "+hostOnLAN {
			t.Errorf("from the LAN came %q", got)
		}
		if got := b.hears("b", "a.vm", "80", "20"); got != "I am a" {
			t.Errorf("by its name a says %q to b", got)
		}
		for _, address := range []string{b.ip("a") + ":80", "127.0.0.1:18080"} {
			if got := says(address, patience); got != "I am a" {
				t.Errorf("%s says %q", address, got)
			}
		}
	})
	t.Run("commands", func(t *testing.T) { testFirecrackerCommands(t, b) })
	t.Run("pause", func(t *testing.T) {
		b.ok("pause", "a")
		if s := b.inspect("a").State; s != api.StatePaused {
			t.Errorf("it is %s", s)
		}
		b.ok("resume", "a")
		b.ok("exec", "a", "--", "true")
	})
	t.Run("a daemon that dies", func(t *testing.T) {
		b.killDaemon()
		if got := b.ok("exec", "a", "--", "md5sum", "-c", "/root/sum"); !strings.Contains(got, "OK") {
			t.Errorf("its disk has %q", got)
		}
		if got := b.fetch("b"); got != "hello "+hostOnLAN {
			t.Errorf("from the LAN came %q", got)
		}
	})
	t.Run("stop and start", func(t *testing.T) {
		if r := b.run("", "stop", "a"); r.code != 0 || strings.Contains(r.err, "killed") {
			t.Errorf("%+v", r)
		}
		b.ok("start", "a")
		b.ok("exec", "a", "--", "md5sum", "-c", "/root/sum")
	})
	t.Run("powered off inside", func(t *testing.T) {
		b.run("", "exec", "a", "--", "poweroff")
		eventually(t, "the VM stops", func() bool { return b.list()["a"].State == api.StateStopped })
	})
	t.Run("killed from outside", func(t *testing.T) {
		b.signal(b.inspect("b").PID, unix.SIGKILL)
		eventually(t, "the VM fails", func() bool { return b.list()["b"].State == api.StateFailed })
		// Its daemon is not the one that started it, so it is not told of the signal.
		if why := b.inspect("b").Error; !strings.Contains(why, "Firecracker ended unexpectedly") {
			t.Errorf("the reason is %q", why)
		}
	})
}

// testFirecrackerConfined looks at two machines from outside, and as one of them at the other.
func testFirecrackerConfined(t *testing.T, b *banger) {
	b.peersAreApart("a", "b")
	for _, name := range []string{"a", "b"} {
		v := b.inspect(name)
		c := v.Confinement
		if c == nil || c.UID != jail.ID(v.ID) || c.GID != c.UID || c.Capabilities != "0x0" || !c.NoNewPrivs || !c.Seccomp || !c.OwnFiles || c.FileMaxBytes == nil || c.OpenFilesMax == nil || c.ProcessesMax == nil {
			t.Fatalf("%s: %+v", name, c)
		}
		if lacking, why := jail.Lacking(); lacking == "" && (c.MemoryMaxBytes == nil || c.CPUsMax == nil || len(v.Notes) > 0) {
			t.Errorf("%s: %+v, with the notes %q; the host lacks %q: %s", name, c, v.Notes, lacking, why)
		}
		// Each thread has banger's filter of system calls, and one of Firecracker's own.
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", v.PID))
		if err != nil || len(threads) < 3 {
			t.Errorf("%s has the threads %q, %v", name, threads, err)
		}
		for _, thread := range threads {
			if status, err := os.ReadFile(thread); err != nil || !strings.Contains(string(status), "Seccomp_filters:\t2\n") {
				t.Errorf("%s: %s, %v", thread, status, err)
			}
		}
		// Three sockets, and links to its disk and the modules.
		if names, err := os.ReadDir(filepath.Join(v.Directory, "run")); err != nil || len(names) != 5 {
			t.Errorf("what it knows by names is %v, %v", names, err)
		}
	}
}

// VMs of Firecracker's start warm too: each with a disk, a network and an identity of its own.
func TestFirecrackerWarm(t *testing.T) {
	needFirecracker(t)
	bridged(t)
	b := warm(t)
	b.ok("template", "build", "tiny")
	b.vm("--name", "a", "--warm")
	b.vm("--name", "b", "--warm")
	one, other := b.identity("a"), b.identity("b")
	for what, x := range one {
		if x == other[what] {
			t.Errorf("two clones have one %s: %s", what, x)
		}
	}
	for _, name := range []string{"a", "b"} {
		v := b.inspect(name)
		if v.Backend != "firecracker" || v.Start.Kind != "warm" || v.Disk.Driver != "dm" || v.Confinement == nil || v.Confinement.UID != jail.ID(v.ID) {
			t.Errorf("%s: %+v, %+v", name, v, v.Confinement)
		}
		if off := b.skew(name); off > 50*time.Millisecond {
			t.Errorf("the clock of %s is off by %v", name, off)
		}
	}
	b.server("a", "80")
	if got := b.hears("b", "a.vm", "80", "20"); got != "I am a" {
		t.Errorf("by its name a says %q to b", got)
	}
	b.ok("exec", "a", "--", "sh", "-c", "echo of a >/root/file && sync")
	if r := b.run("", "exec", "b", "--", "ls", "/root/file"); r.code == 0 {
		t.Error("what one VM writes the other reads")
	}
	b.killDaemon()
	b.ok("pause", "a")
	b.ok("resume", "a")
	b.ok("restart", "a") // which boots
	if v := b.inspect("a"); v.Start.Kind != "cold" || b.ok("exec", "a", "--", "cat", "/root/file") != "of a\n" {
		t.Errorf("after a restart: %+v", v)
	}
}

func testFirecrackerCommands(t *testing.T, b *banger) {
	if r := b.run("in\n", "exec", "a", "--", "sh", "-c", "cat; echo err >&2; exit 3"); r.code != 3 || r.out != "in\n" || !strings.Contains(r.err, "err") {
		t.Errorf("%+v", r)
	}
	if got := b.ok("exec", "-t", "a", "--", "sh", "-c", "test -t 0 && echo a terminal"); !strings.Contains(got, "a terminal") {
		t.Errorf("with a terminal: %q", got)
	}
	file := filepath.Join(t.TempDir(), "file")
	content := strings.Repeat("line\n", 1<<20)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	b.ok("cp", file, "a:/root/copy")
	b.ok("cp", "a:/root/copy", file+"2")
	if got, err := os.ReadFile(file + "2"); err != nil || string(got) != content {
		t.Errorf("a copy of a copy has %d bytes, %v", len(got), err)
	}
	b.ok("exec", "a", "--", "sh", "-c", "echo on the console >/dev/console")
	eventually(t, "the console is logged", func() bool { return strings.Contains(b.ok("logs", "a"), "on the console") })
	if got := b.ok("stats", "--json", "a"); !strings.Contains(got, `"a"`) {
		t.Errorf("stats: %s", got)
	}
	b.refused(1, []string{"can't be trimmed", "--backend qemu"}, "disk", "trim", "a")
	if got := b.ok("exec", "a", "--", "cat", "/proc/sys/kernel/random/entropy_avail", "/sys/class/misc/hw_random/rng_current"); !strings.Contains(got, "virtio_rng") {
		t.Errorf("it has no source of randomness: %q", got)
	}
}

// What Firecracker never can it says before anything is made, also where it is not installed.
func TestFirecrackerCan(t *testing.T) {
	b := newBanger(t)
	for flag, word := range map[string]string{
		"--accel=tcg": "KVM only", "--nested": "themselves", "--net=user": "--net user", "--disk-driver=qcow2": "qcow2", "--cpus=33": "32 CPUs",
	} {
		net := "--net=none"
		if flag == "--net=user" {
			net = flag
		}
		b.refused(1, []string{"Firecracker", word, "--backend qemu"}, "create", "--image", "tiny", "--backend", "firecracker", net, flag)
	}
	b.refused(1, []string{`no backend "bochs"`, "auto, firecracker or qemu"}, "create", "--image", "tiny", "--backend", "bochs")
}

// Verbs of a VM that Firecracker runs are cut short, as those of QEMU are in TestEveryStepFailsAndIsCut;
// not at all steps, for a boot takes the lab seven seconds.
func TestFirecrackerIsCutShort(t *testing.T) {
	needFirecracker(t)
	if testing.Short() {
		t.Skip("SKIP: it takes minutes")
	}
	f := makeFaulty(bridged(t))
	seen := f.cutAll("kill", 3, "--backend", "firecracker")
	if len(seen) < 20 {
		t.Errorf("only these steps were seen: %v", seen)
	}
}
