package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
)

// counting is a program whose state is in memory only: it answers with a number that never repeats
// and always grows.
const counting = `i=0; mkfifo /run/ask /run/tell; (while read x </run/ask; do i=$((i+1)); echo $i >/run/tell; done) >/dev/null 2>&1 </dev/null &`

const count = "echo >/run/ask; cat /run/tell"

// What a guest has in its memory goes on: in VMs of a snapshot, in live copies, and in the VM itself
// after it was suspended and the daemon killed. Each copy is another machine.
func TestMemoryGoesOn(t *testing.T) {
	b := newBanger(t)
	a := b.vm("--net", "none")
	b.ok("exec", a, "--", "sh", "-c", counting)
	next := func(name, want string) {
		t.Helper()
		if got := strings.TrimSpace(b.ok("exec", name, "--", "sh", "-c", count)); got != want {
			t.Errorf("%s counts to %q, not %s", name, got, want)
		}
	}
	next(a, "1")
	if got := b.ok("snapshot", a, "ready"); got != "ready\n" {
		t.Errorf("the snapshot is called %q", got)
	}
	next(a, "2")
	b.ok("run", "-d", "--name", "later", "--from", "ready", "-e", "NEW=1")
	next("later", "2")
	copies := strings.Fields(b.ok("fork", "-n", "2", a))
	if len(copies) != 2 {
		t.Fatalf("the copies are %q", copies)
	}
	for _, c := range copies {
		next(c, "3")
	}
	b.ok("suspend", a, copies[0])
	b.killDaemon()
	if v := b.inspect(a); v.State != api.StateSuspended || v.PID != 0 {
		t.Errorf("suspended it is %+v", v)
	}
	b.refused(125, []string{"is suspended", "banger resume " + a}, "exec", a, "--", "true")
	b.ok("resume", a)
	next(a, "3")
	b.ok("start", copies[0]) // which is resume, too
	next(copies[0], "4")

	seen := map[string]string{}
	for _, name := range append([]string{a, "later"}, copies...) {
		is := b.ok("exec", name, "--", "sh", "-c", "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | md5sum")
		if lines := strings.Split(is, "\n"); lines[0] != name {
			t.Errorf("%s calls itself %s", name, lines[0])
		}
		for line := range strings.Lines(is) {
			if other, taken := seen[line]; taken {
				t.Errorf("%s and %s have the same %s", name, other, line)
			}
			seen[line] = name
		}
	}

	b.refused(1, []string{"in use by", "later"}, "snapshot", "rm", "ready")
	b.ok("rm", "-f", "later")
	b.ok("snapshot", "rm", "ready")
	b.ok("rm", "-f", a, copies[0], copies[1])
	if left, err := os.ReadDir(filepath.Join(b.state, "templates")); err == nil && len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}
