package jail

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Where systemd runs, what is confined is in a scope of its own, which goes with it.
func TestScope(t *testing.T) {
	needRoot(t)
	if lacking, why := Lacking(); !systemdRuns() || lacking != "" {
		t.Skipf("SKIP: systemd does not run this host, or it lacks %q: %s", lacking, why)
	}
	c := newCell(t, "it's-1")
	child, _ := c.start(t, "wait", nil)
	name := scopeName(c.Home, child.Process.PID)
	group, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(child.Process.PID), "cgroup"))
	if want := "0::/" + slice + "/" + name; err != nil || strings.TrimSpace(string(group)) != want {
		t.Errorf("it is in %q, %v, want %q", group, err, want)
	}
	found, err := Groups(filepath.Dir(c.Home))
	if err != nil || len(found) != 1 || found[0].Path != filepath.Base(c.Home) {
		t.Errorf("cgroups: %+v, %v", found, err)
	}
	if err := RemoveGroup(c.Home); err != nil { // ends what is in it
		t.Fatal(err)
	}
	<-child.Done()
	if out, err := exec.Command("systemctl", "is-active", name).Output(); strings.TrimSpace(string(out)) != "inactive" {
		t.Errorf("its scope is %s, %v", out, err)
	}
	if found, err := Groups(filepath.Dir(c.Home)); err != nil || len(found) > 0 {
		t.Errorf("cgroups: %+v, %v", found, err)
	}
}

// Where it does not, cgroups are made by hand. Such a host is one whose systemd is out of sight.
func TestWithoutSystemd(t *testing.T) {
	needRoot(t)
	if !systemdRuns() {
		t.Skip("SKIP: systemd does not run this host, and so all other tests are this one")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("unshare", "--mount", "sh", "-ec", `mount -t tmpfs none /run/systemd; exec "$0" -test.v -test.run='TestFromOutside|TestBombs|TestMemoryBomb|TestNoWayOut'`, self).CombinedOutput()
	if err != nil || strings.Contains(string(out), "SKIP") {
		t.Errorf("%v: %s", err, out)
	}
}
