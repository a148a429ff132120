package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
)

// warm is a banger that keeps templates. At its end they are all gone, and what makes one.
func warm(t *testing.T) *banger {
	t.Helper()
	b := newBanger(t)
	b.env = append(b.env, "BANGER_TEMPLATE_BUDGET=1G")
	t.Cleanup(func() { // before the banger is closed
		if names := strings.Fields(b.ok("ls", "-aq")); len(names) > 0 {
			b.ok(append([]string{"rm", "-f"}, names...)...)
		}
		b.ok("daemon", "stop") // which also ends the making of one
		b.ok("template", "prune")
		if left := b.templates(); len(left) > 0 {
			t.Errorf("templates are left: %+v", left)
		}
	})
	return b
}

func (b *banger) templates() (all []api.Template) {
	b.t.Helper()
	if err := json.Unmarshal([]byte(b.ok("template", "ls", "--json")), &all); err != nil {
		b.t.Fatal(err)
	}
	return all
}

// identity is what must not be the same in two VMs.
func (b *banger) identity(name string) map[string]string {
	b.t.Helper()
	out := b.ok("exec", name, "--", "sh", "-c", `cat /etc/machine-id /proc/sys/kernel/random/boot_id /sys/class/net/eth0/address
		head -c 16 /dev/urandom | od -An -tx1; hostname; cat /proc/sys/kernel/random/uuid; grep 127.0.1.1 /etc/hosts
		ip -6 addr show eth0 | grep -o 'fe80[^ ]*'`)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 8 {
		b.t.Fatalf("%s says of itself %q", name, out)
	}
	id := map[string]string{}
	for i, what := range []string{"machine id", "boot id", "hardware address", "random bytes", "host name", "UUID", "line in hosts", "IPv6 address"} {
		id[what] = lines[i]
	}
	v := b.inspect(name)
	if v.Network.MAC != id["hardware address"] {
		b.t.Errorf("the interface of %s has %s, not %s", name, id["hardware address"], v.Network.MAC)
	}
	if id["host name"] != name || !strings.HasSuffix(id["line in hosts"], name) {
		b.t.Errorf("%s calls itself %s, and in hosts %q", name, id["host name"], id["line in hosts"])
	}
	if v.Network.Mode == "bridge" {
		id["IP address"] = v.Network.IP
	}
	return id
}

// skew is how far a guest's clock is off, by its own account between two looks at the host's,
// beyond what a host as busy as this one lets be told: it is set by a message that takes about as
// long as the one that asks.
func (b *banger) skew(name string) time.Duration {
	b.t.Helper()
	before := time.Now()
	text := strings.TrimSpace(b.ok("exec", name, "--", "sh", "-c", "touch /tmp/now && stat -c %y /tmp/now"))
	after := time.Now()
	guest, err := time.Parse("2006-01-02 15:04:05.999999999 -0700", text)
	if err != nil {
		guest, err = time.Parse("2006-01-02 15:04:05.999999999", text)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	unsure := max(0, after.Sub(before)/2-50*time.Millisecond)
	switch {
	case guest.Before(before):
		return before.Sub(guest) - unsure
	case guest.After(after):
		return guest.Sub(after) - unsure
	}
	return 0
}

// A warm VM is one of its own, works on every device, and leaves nothing.
func TestWarmVMs(t *testing.T) {
	b := warm(t)
	b.refused(125, []string{"no template", "template build"}, "run", "--rm", "--warm", "--image", "tiny", "true")
	b.ok("template", "build", "tiny")
	ts := b.templates()
	if len(ts) != 1 || ts[0].Image != "tiny" || ts[0].Bytes > ts[0].MemoryBytes {
		t.Fatalf("templates: %+v", ts)
	}
	for _, name := range []string{"memory", "state"} {
		if info, err := os.Stat(filepath.Join(ts[0].Path, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	b.ok("template", "build", "tiny") // which is there

	const clones = 4
	var wg sync.WaitGroup
	for i := range clones {
		wg.Go(func() { b.vm("--name", fmt.Sprintf("c%d", i), "--warm") })
	}
	wg.Wait()
	b.ok("create", "--image", "tiny", "--name", "later")
	b.ok("start", "--warm", "later")
	seen := map[string]string{}
	for _, name := range []string{"c0", "c1", "c2", "c3", "later"} {
		if v := b.inspect(name); v.Start.Kind != "warm" {
			t.Errorf("%s was started %+v", name, v.Start)
		}
		for what, value := range b.identity(name) {
			if other, dup := seen[what+value]; dup {
				t.Errorf("%s and %s have the same %s: %s", name, other, what, value)
			}
			seen[what+value] = name
		}
		if off := b.skew(name); off > 50*time.Millisecond {
			t.Errorf("the clock of %s is %v off", name, off)
		}
	}
	if list := b.ok("ls"); !strings.Contains(list, "warm 0.") && !strings.Contains(list, "warm 1.") {
		t.Errorf("ls does not show how they were started:\n%s", list)
	}
	b.refused(1, []string{"in use by", "c0"}, "template", "rm", ts[0].Name)
	b.works("c0")
	if os.Getenv(inside) != "" { // they are on a bridge
		b.server("c0", "80")
		for what, heard := range map[string]string{
			"the host": says(b.ip("c0")+":80", patience), "a clone": b.hears("c1", "c0.vm", "80", "20"),
		} {
			if heard != "I am c0" {
				t.Errorf("a clone says %q to %s", heard, what)
			}
		}
		if got := b.fetch("c1"); got != "hello "+hostOnLAN {
			t.Errorf("a server on the LAN says %q to a clone", got)
		}
	}
	b.ok("stop", "c0")
	b.refused(1, []string{"can't be started warm"}, "start", "--warm", "c0")
	b.ok("start", "c0")
	if v := b.inspect("c0"); v.Start.Kind != "cold" {
		t.Errorf("a VM that had run was started %+v", v.Start)
	}
	if got := b.ok("exec", "c0", "--", "cat", "/root/written"); got != "kept\n" {
		t.Errorf("after a restart: %q", got)
	}
}

// works has a VM write to its disk, measure time, and use both its CPUs, its console and its source
// of randomness.
func (b *banger) works(name string) {
	b.t.Helper()
	sums := strings.Fields(b.ok("exec", name, "--", "sh", "-c", `echo kept >/root/written
		dd if=/dev/urandom of=/root/x bs=1M count=20 2>/dev/null && sync && md5sum </root/x
		echo 3 >/proc/sys/vm/drop_caches; md5sum </root/x; rm /root/x`))
	if len(sums) != 4 || sums[0] != sums[2] {
		b.t.Errorf("what %s has written reads as %q", name, sums)
	}
	begin := time.Now()
	b.ok("exec", name, "--", "sleep", "2")
	if took := time.Since(begin); took < 1900*time.Millisecond || took > 10*time.Second {
		b.t.Errorf("2 seconds took %v", took)
	}
	b.ok("exec", name, "--", "sh", "-c", "echo seen on the console >/dev/console")
	eventually(b.t, "the console is logged", func() bool { return strings.Contains(b.ok("logs", name), "seen on the console") })
	const draw = "head -c 16 /dev/hwrng | md5sum"
	if one, other := b.ok("exec", name, "--", "sh", "-c", draw), b.ok("exec", name, "--", "sh", "-c", draw); one == other {
		b.t.Errorf("twice %s drew %q", name, one)
	}
	if cpus := strings.TrimSpace(b.ok("exec", name, "--", "grep", "-c", "^processor", "/proc/cpuinfo")); cpus != "2" {
		b.t.Errorf("%s CPUs", cpus)
	}
}

// What is the matter with a template is the business of nobody who wants a VM.
func TestTemplatesFailSilently(t *testing.T) {
	b := warm(t)
	b.ok("template", "build", "tiny")
	old := b.templates()[0]
	flip(t, filepath.Join(old.Path, "memory"))
	if v := b.inspect(b.vm("--name", "first")); v.Start.Kind != "cold" {
		t.Errorf("with a damaged memory: %+v", v.Start)
	}
	if !strings.Contains(b.ok("events", "--no-follow"), old.Name+" is not used any more") {
		t.Error("no event tells of the damage")
	}
	eventually(t, "another template is made after the cold start", func() bool {
		now := b.templates()
		return len(now) == 1 && !now[0].Retired && now[0].Name != old.Name
	})
	if v := b.inspect(b.vm("--name", "fresh", "--fresh")); v.Start.Kind != "cold" {
		t.Errorf("--fresh: %+v", v.Start)
	}
	if v := b.inspect(b.vm("--name", "other", "--warm")); v.Start.Kind != "warm" {
		t.Errorf("--warm: %+v", v.Start)
	}
}

// flip changes one bit of a file's data.
func flip(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	at, err := f.Seek(min(100<<10, info.Size()/2), unix.SEEK_DATA)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// A template in the making is in nobody's way.
func TestATemplateInTheMakingIsInNobodysWay(t *testing.T) {
	b := warm(t)
	b.vm("--name", "first", "--net", "none")
	eventually(t, "a machine for the template", func() bool { return len(b.processes("qemu")) == 2 })
	if list := b.ok("ls", "-aq"); list != "first\n" {
		t.Errorf("ls shows %q", list)
	}
	b.census()
	b.ok("rm", "-f", "first")
	b.ok("daemon", "stop")
	if left := b.processes("qemu"); left != nil {
		t.Errorf("left behind a daemon that was stopped: %q", left)
	}
	b.vm("--name", "second", "--net", "none")
	eventually(t, "a machine for the template", func() bool { return len(b.processes("qemu")) == 2 })
	b.killDaemon()
	b.ok("rm", "-f", "second")
	b.census()
	if left := b.processes("qemu"); left != nil {
		t.Errorf("left behind a daemon that was killed: %q", left)
	}
	if left, _ := filepath.Glob(filepath.Join(b.state, "templates", ".*")); left != nil {
		t.Errorf("left behind: %q", left)
	}
}

// A VM that is kept ready is there for who asks for one like it, and is somebody's then.
func TestAVMThatIsKeptReady(t *testing.T) {
	b := warm(t)
	b.ok("template", "build", "tiny")
	b.ok("daemon", "stop")
	b.env = append(b.env, "BANGER_POOL=tiny=1")
	b.ok("daemon", "start")
	var ready api.VM
	isReady := func() bool {
		var all []api.VM
		if err := json.Unmarshal([]byte(b.ok("ls", "--json")), &all); err != nil {
			t.Fatal(err)
		}
		if len(all) == 1 && all[0].Pooled && all[0].State == "paused" {
			ready = all[0]
		}
		return ready.ID != ""
	}
	eventually(t, "a VM is kept ready", isReady)
	if list := b.ok("ls", "-q"); list != "" {
		t.Errorf("ls shows %q", list)
	}
	b.census()
	b.refused(1, []string{"kept ready"}, "resume", ready.Name)
	b.vm("--name", "mine", "-e", "WHOSE=mine")
	mine := b.inspect("mine")
	if mine.ID != ready.ID || mine.Pooled || mine.State != "running" || mine.Start.Kind != "warm" {
		t.Errorf("it is not the one that was ready: %+v", mine)
	}
	b.identity("mine")
	if off := b.skew("mine"); off > 50*time.Millisecond {
		t.Errorf("its clock is %v off", off)
	}
	if got := b.ok("exec", "mine", "--", "sh", "-c", "echo $WHOSE $(hostname)"); got != "mine mine\n" {
		t.Errorf("it says %q", got)
	}
	ready = api.VM{}
	b.ok("rm", "-f", "mine")
	eventually(t, "another is kept ready", isReady)
	b.killDaemon()
	b.env = append(b.env, "BANGER_POOL=")
	b.census()
	if left := b.processes("qemu"); left != nil {
		t.Errorf("left behind a daemon that was killed: %q", left)
	}
}
