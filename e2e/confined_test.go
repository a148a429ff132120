package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/jail"
)

// VMMs run confined, each to a user and files of its own, and stay so under another daemon.
func TestVMMsAreConfined(t *testing.T) {
	if err := jail.Check(); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	b := newBanger(t)
	one, two := b.vm("--name", "one", "--wait", "agent"), b.vm("--name", "two", "--wait", "agent", "--net", "user")
	before := map[string]int{}
	for _, name := range []string{one, two} {
		v := b.inspect(name)
		c := v.Confinement
		if c == nil || c.UID != jail.ID(v.ID) || c.GID != c.UID || c.Capabilities != "0x0" || !c.NoNewPrivs || !c.Seccomp || !c.OwnFiles {
			t.Fatalf("%s: %+v", name, c)
		}
		// A network stack of QEMU's own needs the host's network.
		if c.OwnNetwork != (name == one) || c.FileMaxBytes == nil || c.OpenFilesMax == nil || c.ProcessesMax == nil {
			t.Errorf("%s: %+v", name, c)
		}
		lacking, why := jail.Lacking()
		if (c.MemoryMaxBytes != nil) != (lacking == "") || (c.CPUsMax != nil) != (lacking == "") || strings.Contains(strings.Join(v.Notes, "\n"), "limits the memory") != (lacking != "") {
			t.Errorf("%s: %+v with the notes %q, on a host that lacks %q: %s", name, c, v.Notes, lacking, why)
		}
		before[name] = v.PID
	}
	b.peersAreApart(one, two)
	b.killDaemon()
	for name, pid := range before {
		if v := b.inspect(name); v.PID != pid || v.Confinement == nil || v.Confinement.UID != jail.ID(v.ID) {
			t.Errorf("under another daemon %s is %d, was %d, %+v", name, v.PID, pid, v.Confinement)
		}
	}
	b.ok("restart", "--wait", "agent", one)
	b.ok("exec", one, "--", "true")
	// Of a VM that has just started again its other lines may say that nothing answers yet.
	if out := b.run("", "doctor").out; !strings.Contains(out, "confinement: each VMM has a user") {
		t.Errorf("doctor: %s", out)
	}
	b.ok("rm", "-f", one, two)
	if left, err := jail.Groups(filepath.Join(b.state, "vms")); err != nil || len(left) > 0 {
		t.Errorf("cgroups that are left: %v, %v", left, err)
	}

	free := b.vm("--backend", "qemu", "--unjailed", "--wait", "agent")
	v := b.inspect(free)
	if c := v.Confinement; c == nil || c.UID != 0 || c.OwnFiles || !c.Seccomp || !strings.Contains(strings.Join(v.Notes, "\n"), "not confined") {
		t.Errorf("a VMM that is not to be confined: %+v, %q", c, v.Notes)
	}
}

// diskOf is what a VM's machine has as its root disk: a file, or a device.
func (b *banger) diskOf(v api.VM) string {
	b.t.Helper()
	if v.Disk.Driver == "qcow2" {
		return filepath.Join(v.Directory, "root.qcow2")
	}
	device, err := filepath.EvalSymlinks("/dev/mapper/banger-" + v.ID) // machines have it by the kernel's name
	if err != nil {
		b.t.Fatalf("the disk of %s: %v", v.Name, err)
	}
	return device
}

// peersAreApart tries, as the user of one VM's machine, to get at the other's disk and process,
// and looks for it in the files that it sees.
func (b *banger) peersAreApart(one, two string) {
	b.t.Helper()
	v, peer := b.inspect(one), b.inspect(two)
	disk := b.diskOf(peer)
	for _, argv := range [][]string{{"cat", disk}, {"kill", "-9", fmt.Sprint(peer.PID)}, {"readlink", fmt.Sprintf("/proc/%d/root", peer.PID)}} {
		c := exec.Command(argv[0], argv[1:]...)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(v.Confinement.UID), Gid: uint32(v.Confinement.GID)}}
		if out, err := c.CombinedOutput(); err == nil {
			b.t.Errorf("the user of another VM's machine may %q: %s", argv, out)
		}
	}
	owner, others := peer.Confinement.UID, uint32(0o077)
	if strings.HasPrefix(disk, "/dev/") { // of which each machine has a node of its own
		owner, others = os.Geteuid(), 0o007
	}
	var st unix.Stat_t
	if err := unix.Stat(disk, &st); err != nil || int(st.Uid) != owner || st.Mode&others != 0 {
		b.t.Errorf("a disk is %d's, with the mode %o: %v", st.Uid, st.Mode, err)
	}
	root := fmt.Sprintf("/proc/%d/root", v.PID)
	for path, there := range map[string]bool{b.diskOf(v): true, disk: false, "/etc/passwd": false, "/root": false, b.state + "/banger.db": false} {
		if _, err := os.Stat(root + path); (err == nil) != there {
			b.t.Errorf("a VMM sees %s: %v", path, err)
		}
	}
}
