// Package installed has tests of banger as Debian's package and systemd run it on a host: it
// is installed, restarted and upgraded under running VMs. That takes a host of one's own: the
// lab runs them.
package installed

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"

	"banger/api"
)

const (
	older, newer = "0.1.0", "0.2.0" // the packages that the lab has

	guestBoot = "banger exec web -- cat /proc/sys/kernel/random/boot_id"

	dev = "dev" // a user of the host's
)

// onALab skips where the host is not there to be changed.
func onALab(t *testing.T) {
	t.Helper()
	if os.Getenv("BANGER_LAB") == "" {
		t.Skip("SKIP: this host is not the lab; make test-lab runs this test there")
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := try("systemctl status --no-pager --lines=0 bangerd.socket bangerd.service; journalctl --no-pager -o cat -n 60 -u bangerd.service")
			t.Log(out)
		}
	})
}

// try runs a script as root would in a shell of theirs, with no setting of banger's.
func try(script string) (string, error) {
	c := exec.Command("sh", "-euc", script)
	c.Dir = "/"
	c.Env = []string{"HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	var errOut bytes.Buffer
	c.Stderr = &errOut
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s%s", script, err, out, errOut.String())
	}
	return strings.TrimSpace(string(out)), err
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := try(script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// is fails the test unless the script prints that.
func is(t *testing.T, want, script string) {
	t.Helper()
	if got := sh(t, script); got != want {
		t.Errorf("%s: %q, want %q", script, got, want)
	}
}

func read[T any](t *testing.T, script string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(sh(t, script)), &v); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return v
}

func inspect(t *testing.T, name string) api.VM {
	t.Helper()
	return read[[]api.VM](t, "banger inspect "+name)[0]
}

// life is what is another when a VM was not left running.
func life(t *testing.T) string {
	t.Helper()
	return fmt.Sprint(inspect(t, "web").PID, sh(t, guestBoot))
}

// as makes a script one of the user dev's.
func as(user, script string) string {
	return fmt.Sprintf("setpriv --reuid=%[1]s --regid=%[1]s --init-groups env HOME=/home/%[1]s XDG_RUNTIME_DIR=/run/user/$(id -u %[1]s) sh -euc '%[2]s'", user, script)
}

// daemonVersion is that of the daemon that answers.
func daemonVersion(t *testing.T) string {
	t.Helper()
	return read[struct{ Daemon api.Daemon }](t, "banger version --json").Daemon.Version
}

func TestPackage(t *testing.T) {
	onALab(t)
	for _, step := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"installed", testInstalled},
		{"started by its socket", testSocket},
		{"confined", testConfined},
		{"found by name", testNames},
		{"VMs outlive the daemon", testOutlive},
		{"upgraded", testUpgraded},
		{"an owner", testOwner},
		{"a daemon of one's own", testUser},
		{"nothing else on the host", func(t *testing.T) { is(t, "", "banger system census") }},
		{"ready for a reboot", testReady},
	} {
		if !t.Run(step.name, step.do) {
			return // each stands on those before
		}
	}
}

func testInstalled(t *testing.T) {
	if _, err := try("dpkg --status banger"); err == nil { // of an earlier run in a lab that stays
		sh(t, "dpkg --purge banger")
	}
	sh(t, "dpkg --install /opt/banger/tests/banger_"+older+"_amd64.deb")
	is(t, "active", "systemctl is-active bangerd.socket")
	is(t, "inactive", "systemctl is-active bangerd.service || true")
	is(t, "enabled\nenabled", "systemctl is-enabled bangerd.socket bangerd.service")
	is(t, "root root 700", "stat -c '%U %G %a' /var/lib/banger")
	is(t, "root 600", "stat -c '%U %a' /run/banger/bangerd.sock")
	sh(t, "systemd-analyze security --no-pager --threshold=49 bangerd.service") // that is OK, in its words
	if out, err := try("banger run --rm -- true"); err == nil || !strings.Contains(err.Error(), "banger runtime") {
		t.Errorf("without a runtime bundle a run says %q, %v", out, err)
	}
	sh(t, "cp -a --sparse=always /opt/banger/runtime/. /usr/lib/banger") // runtime install would add it up, for minutes here
}

func testSocket(t *testing.T) {
	sh(t, "systemctl stop bangerd.service")
	is(t, "inactive", "systemctl is-active bangerd.service || true")
	is(t, "", "banger ls -q")
	is(t, "active", "systemctl is-active bangerd.service")
	sh(t, "banger run -d --autostart --name web --image tiny")
	is(t, "web", "banger exec web -- hostname")
	s := read[struct {
		System bool
		Daemon api.Daemon
	}](t, "banger daemon status --json")
	if !s.System || s.Daemon.Socket != "/run/banger/bangerd.sock" || s.Daemon.StateDir != "/var/lib/banger" || s.Daemon.Running != 1 {
		t.Errorf("%+v", s)
	}
	is(t, fmt.Sprint(s.Daemon.PID), "systemctl show -P MainPID bangerd.service")
}

// Confinement is whole under the unit's hardening, and no other unit of systemd's, nor systemd
// itself when it reads its units again, takes a limit away.
func testConfined(t *testing.T) {
	sh(t, "banger run -d --backend qemu --disk-driver dm --name old --image tiny")
	for name, backend := range map[string]string{"web": "firecracker", "old": "qemu"} {
		if v := inspect(t, name); v.Backend != backend || v.Disk.Driver != "dm" || v.Network.Mode != "bridge" {
			t.Errorf("%s is run by %s on a disk of %s, on a network of %s", name, v.Backend, v.Disk.Driver, v.Network.Mode)
		}
		testLimits(t, name)
	}
	sh(t, "banger rm -f old")
	is(t, "", "banger system census")
	// It sees how the clock is kept, which the unit forbids it to ask the kernel.
	for _, c := range read[[]api.Check](t, "banger doctor --json || true") {
		if c.Name == "time" && strings.Contains(c.Detail, "permitted") {
			t.Errorf("doctor: %+v", c)
		}
	}
}

func testLimits(t *testing.T, name string) {
	limits := func() [3]int64 {
		v := inspect(t, name)
		c := v.Confinement
		if v.Accel != "kvm" || len(v.Notes) > 0 || c == nil || c.MemoryMaxBytes == nil || c.CPUsMax == nil || c.ProcessesMax == nil {
			t.Fatalf("a VM of the service's: %s, notes %q, %+v", v.Accel, v.Notes, c)
		}
		if c.UID == 0 || strings.Trim(c.Capabilities, "0x") != "" || !c.NoNewPrivs || !c.Seccomp || !c.OwnFiles || !c.OwnNetwork && v.Backend == "qemu" {
			t.Errorf("its VMM: %+v", c)
		}
		return [3]int64{*c.MemoryMaxBytes, *c.CPUsMax, *c.ProcessesMax}
	}
	before := limits()
	sh(t, "systemctl daemon-reload; systemd-run --wait --quiet -p MemoryMax=64M -p CPUQuota=50% -p TasksMax=20 true; systemctl daemon-reload")
	if after := limits(); after != before {
		t.Errorf("limits were %v and are %v", before, after)
	}
	// It is in a unit that systemd knows, and that does not end with the daemon's.
	cgroup := sh(t, fmt.Sprintf("cat /proc/%d/cgroup", inspect(t, name).PID))
	slice, unit := path.Split(strings.TrimPrefix(cgroup, "0::"))
	if slice != "/banger.slice/" || !strings.HasSuffix(unit, ".scope") {
		t.Errorf("its cgroup is %s", cgroup)
	}
	is(t, "active", "systemctl is-active '"+unit+"'")
}

func testNames(t *testing.T) {
	ip := inspect(t, "web").Network.IP
	is(t, ip, "getent ahostsv4 web.vm | awk '{print $1; exit}'")
	sh(t, "ping -c1 -W10 web.vm")
	if d := read[api.DNS](t, "banger dns status --json"); d.Publisher != "resolved" || d.Problem != "" {
		t.Errorf("names are published by %s: %s", d.Publisher, d.Problem)
	}
}

func testOutlive(t *testing.T) {
	before := life(t)
	for _, script := range []string{
		"systemctl restart bangerd.service",
		"systemctl stop bangerd.socket bangerd.service && systemctl start bangerd.socket",
		"kill -9 $(systemctl show -P MainPID bangerd.service)",
	} {
		sh(t, script)
		if after := life(t); after != before {
			t.Errorf("%s: it was %s and is %s", script, before, after)
		}
		if c := inspect(t, "web").Confinement; c == nil || c.MemoryMaxBytes == nil || !c.OwnFiles {
			t.Errorf("%s: it is confined by %+v", script, c)
		}
		is(t, "", "banger system census")
	}
}

func testUpgraded(t *testing.T) {
	if v := daemonVersion(t); v != "v"+older {
		t.Errorf("the daemon is %s", v)
	}
	before := life(t)
	sh(t, "dpkg --install /opt/banger/tests/banger_"+newer+"_amd64.deb")
	if after := life(t); after != before {
		t.Errorf("it was %s and is %s", before, after)
	}
	if v := daemonVersion(t); v != "v"+newer {
		t.Errorf("after the upgrade the daemon is %s", v)
	}
}

// An owner has root's daemon, and nobody else, whatever the mode of its socket.
func testOwner(t *testing.T) {
	sh(t, "id dev >/dev/null 2>&1 || useradd --create-home --groups kvm "+dev)
	before := life(t)
	sh(t, "banger system install --owner "+dev)
	is(t, dev+" 600", "stat -c '%U %a' /run/banger/bangerd.sock")
	is(t, "web", as(dev, "banger exec web -- hostname"))
	if after := life(t); after != before { // root has it too, by the owner's socket
		t.Errorf("it was %s and is %s", before, after)
	}
	sh(t, "chmod 666 /run/banger/bangerd.sock; chmod 755 /run/banger")
	if out, err := try("setpriv --reuid=nobody --regid=nogroup --clear-groups env BANGER_SOCKET=/run/banger/bangerd.sock banger ls"); err == nil {
		t.Errorf("somebody else has root's daemon: %s", out)
	}
	sh(t, "chmod 600 /run/banger/bangerd.sock")
	sh(t, "banger system uninstall")
	is(t, "inactive", "systemctl is-active bangerd.socket || true")
	sh(t, "banger system install") // again, for nobody but root
	is(t, "root 600", "stat -c '%U %a' /run/banger/bangerd.sock")
	if out, err := try(as(dev, "BANGER_SOCKET=/run/banger/bangerd.sock banger ls")); err == nil {
		t.Errorf("an owner of the past has root's daemon: %s", out)
	}
}

// A user's own daemon is run by their own systemd, and has VMs without any privilege.
func testUser(t *testing.T) {
	sh(t, "loginctl enable-linger "+dev+"; systemctl start user@$(id -u "+dev+").service")
	sh(t, as(dev, "systemctl --user start bangerd.socket"))
	is(t, "inactive", as(dev, "systemctl --user is-active bangerd.service || true"))
	is(t, "out", as(dev, "banger run --rm --image tiny -- echo out"))
	is(t, "active", as(dev, "systemctl --user is-active bangerd.service"))
	s := read[struct{ System bool }](t, as(dev, "banger daemon status --json"))
	if s.System {
		t.Error("they were given the system's")
	}
	sh(t, as(dev, "banger run -d --image tiny --name mine"))
	pid := sh(t, as(dev, "banger ls --format {{.PID}}"))
	sh(t, as(dev, "systemctl --user restart bangerd.service"))
	is(t, pid, as(dev, "banger ls --format {{.PID}}"))
	sh(t, as(dev, "banger rm -f mine"))
	is(t, "", as(dev, "banger system census; systemctl --user stop bangerd.socket bangerd.service"))
	sh(t, "loginctl disable-linger "+dev+"; loginctl terminate-user "+dev+" || true")
}

// bootBefore is a file with the guest's boot before the reboot of the host.
const bootBefore = "/var/tmp/boot-before"

// TestReboot, which the lab runs when it has been booted again, finds what this leaves.
func testReady(t *testing.T) {
	sh(t, "banger exec web -- sh -c 'echo before > /kept; sync'")
	sh(t, guestBoot+" > "+bootBefore)
}
