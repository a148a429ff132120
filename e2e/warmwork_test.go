package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A Debian that goes on from a template does real work on each of its devices, and its disk is
// whole after that.
func TestAWarmDebianWorks(t *testing.T) {
	if !*long {
		t.Skip("SKIP: it takes minutes; make test-long runs it")
	}
	b := warm(t)
	b.ok("template", "build", "debian")
	b.ok("run", "-d", "--warm", "--name", "deb")
	sh := func(script string) string {
		t.Helper()
		return strings.TrimSpace(b.ok("exec", "deb", "--", "sh", "-c", script))
	}

	sums := strings.Fields(sh(`cd /root; dd if=/dev/urandom of=x bs=1M count=200 conv=fsync 2>/dev/null; sha256sum <x; echo 3 >/proc/sys/vm/drop_caches; sha256sum <x; rm x`))
	if len(sums) != 4 || sums[0] != sums[2] {
		t.Errorf("200 MB that were written read as %q", sums)
	}
	begin := time.Now()
	sh("sleep 2")
	if took := time.Since(begin); took < 1900*time.Millisecond || took > 10*time.Second {
		t.Errorf("2 seconds took %v", took)
	}
	if busy := sh(`for i in 1 2; do (taskset -c $((i-1)) sh -c 'n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; grep ^Cpus_allowed_list /proc/self/status') & done; wait`); strings.Count(busy, "Cpus_allowed_list") != 2 {
		t.Errorf("on two CPUs: %q", busy)
	}
	if a, z := sh("od -An -tx8 -N32 /dev/hwrng /dev/random"), sh("od -An -tx8 -N32 /dev/hwrng /dev/random"); a == z || a == "" {
		t.Errorf("random numbers: %q, then %q", a, z)
	}
	sh(`printf '[Service]\nExecStart=/bin/sleep 1000\n' >/run/systemd/system/napper.service; systemctl daemon-reload; systemctl start napper`)
	if state := sh("systemctl is-active napper; systemctl stop napper; systemctl is-active napper || true"); state != "active\ninactive" {
		t.Errorf("a unit that was started and stopped was %q", state)
	}
	if id := sh("logger marked; sync; journalctl -q -o export -n 50 | grep -a -A30 -B30 MESSAGE=marked | grep -a -m1 ^_BOOT_ID= | cut -d= -f2"); id != strings.ReplaceAll(sh("cat /proc/sys/kernel/random/boot_id"), "-", "") {
		t.Errorf("the journal has the boot id %q", id)
	}
	sh("echo seen >/dev/ttyS0")
	eventually(t, "the console shows what is written to it", func() bool { return strings.Contains(b.ok("logs", "deb"), "seen") })

	if r := b.run("", "exec", "deb", "--", "sh", "-c", "timeout 60 apt-get -q -o Acquire::Retries=0 update && apt-get -qy install --no-install-recommends hello && hello"); r.code != 0 {
		t.Logf("SKIP: no mirror is reached from here: %s", r.err)
	} else if !strings.Contains(r.out, "Hello, world!") {
		t.Errorf("an installed program says %q", r.out)
	}

	b.ok("stop", "deb")
	b.ok("commit", "deb", "used")
	defer b.ok("image", "rm", "used")
	if out, err := exec.Command("e2fsck", "-fn", b.image("used").Path).CombinedOutput(); err != nil {
		t.Errorf("its disk: %v\n%s", err, out)
	}
}

// A template for which there is no room is not made, and nobody else has to suffer.
func TestATemplateForWhichThereIsNoRoom(t *testing.T) {
	b := bangerIn(t, tmpfs(t, "44m"))
	b.env = append(b.env, "BANGER_TEMPLATE_BUDGET=1G")
	b.refused(1, []string{"no space left"}, "template", "build", "tiny", "--net", "none")
	if left, _ := filepath.Glob(filepath.Join(b.state, "templates", "*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if left, _ := filepath.Glob(filepath.Join(b.state, "templates", ".*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	b.census()
	b.ok("run", "--rm", "--fresh", "--image", "tiny", "--net", "none", "--", "true")
}
