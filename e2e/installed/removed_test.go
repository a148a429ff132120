package installed

import (
	"context"
	"encoding/json"
	"os/exec"
	"testing"
	"time"

	"banger/api"
)

// What ran when the host went down, and is to, runs again, on its disk as it was.
func TestReboot(t *testing.T) {
	onALab(t)
	is(t, "active", "systemctl is-active bangerd.service")
	startsAgain(t, "web")
	is(t, "before", "banger exec web -- cat /kept")
	if now := sh(t, guestBoot); now == sh(t, "cat "+bootBefore) {
		t.Errorf("its boot is %s, as before", now)
	}
	testLimits(t, "web")
	testNames(t)
	is(t, "", "banger system census")
}

// startsAgain waits until a VM has been started after the host was.
func startsAgain(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "banger", "events", "--json", "--since", "0")
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Wait() // it is killed by then
	defer cancel()
	down := false
	for events := json.NewDecoder(out); ; {
		var e api.Transition
		if err := events.Decode(&e); err != nil {
			t.Fatalf("%s does not run: %v", name, err)
		}
		if e.Name == name && down && e.To == api.StateRunning {
			return
		}
		down = down || e.Name == name && e.Reason == "the host was restarted"
	}
}

// leftovers are what the host has of banger, other than files: machines, what they have, and units.
const leftovers = `
ps -eo comm=,args= | grep -E '^(bangerd|firecracker|qemu-system)' || true
ip -o link | grep -E 'banger|bgr' || true
nft list tables | grep banger || true
dmsetup ls | grep banger || true
losetup -a
ls -d /sys/fs/cgroup/banger.slice/*/ 2>/dev/null || true
grep banger /proc/mounts || true
systemctl list-units --all --plain --no-legend 'bangerd*' 'banger-*'
grep banger /etc/hosts || true
resolvectl domain | grep vm || true`

// The package takes along what it brought and what it did, and leaves what is the user's until
// it is purged.
func TestRemoval(t *testing.T) {
	onALab(t)
	sh(t, "dpkg --remove banger")
	is(t, "", leftovers)
	is(t, "/var/lib/banger/banger.db\n/usr/lib/banger/bundle.json", "ls -U /var/lib/banger/banger.db /usr/lib/banger/bundle.json")
	if out, err := try("command -v banger bangerd"); err == nil {
		t.Errorf("programs are left: %s", out)
	}

	sh(t, "dpkg --install /opt/banger/tests/banger_"+newer+"_amd64.deb")
	is(t, "active", "systemctl is-active bangerd.socket")
	is(t, "enabled\nenabled", "systemctl is-enabled bangerd.socket bangerd.service")
	is(t, "web stopped", "banger ls -a --format '{{.Name}} {{.State}}'")
	sh(t, "banger start web")
	is(t, "before", "banger exec web -- cat /kept")

	sh(t, "dpkg --purge banger") // at once, with a VM that runs
	is(t, "", leftovers)
	is(t, "", "systemctl list-units --all --plain --no-legend 'banger*'")
	// What is in /run but there the lab has as a guest of another banger's.
	is(t, "", "find / -xdev -name '*banger*' -not -path '/opt/banger*' -not -path '/proc/*' -not -path '/sys/*' -not -path '/run/*'; find /run -maxdepth 1 -name '*banger*'")
}
