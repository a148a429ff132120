package e2e

import (
	"strings"
	"testing"
)

// TestNested looks at the CPU from inside: it shows virtualization where that was asked
// for, and only there.
func TestNested(t *testing.T) {
	b := newBanger(t)
	const shown = `grep -qw svm /proc/cpuinfo && echo yes || echo no`
	for _, c := range []struct {
		flag, want string
	}{{"--nested=false", "no\n"}, {"--nested", "yes\n"}} {
		name := b.vm("--accel", "tcg", c.flag)
		if got := b.ok("exec", name, "--", "sh", "-c", shown); got != c.want {
			t.Errorf("%s: does the CPU show virtualization? %q", c.flag, got)
		}
		if got := b.inspect(name).Nested; got != strings.HasPrefix(c.want, "yes") {
			t.Errorf("%s: inspect says %v", c.flag, got)
		}
		b.ok("rm", "-f", name)
	}
}
