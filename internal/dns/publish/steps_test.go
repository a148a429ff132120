package publish

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"banger/internal/dns"
)

// cutEnv has this program publish, instead of testing, and die at a step: "STEP WAY DIR BUS".
const cutEnv = "BANGER_TEST_PUBLISH"

func TestMain(m *testing.M) {
	order := strings.Fields(os.Getenv(cutEnv))
	if len(order) < 3 {
		os.Exit(m.Run())
	}
	step, err := strconv.Atoi(order[0])
	w := way{kind: order[1], dir: order[2], bus: strings.Join(order[3:], "")}
	p := w.open(atStep(step, func() error {
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}))
	for _, s := range lives {
		err = errors.Join(err, p.Publish(context.Background(), s))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// atStep is a door that does something at the step of that number, from 1.
func atStep(n int, do func() error) door {
	return func(string) error {
		if n--; n == 0 {
			return do()
		}
		return nil
	}
}

// lives are what the host is to know, one after the other.
var lives = []State{
	served(two...),
	served(two[0], record("web", "172.30.0.17", "cc"), record("www", "172.30.0.18", "dd")),
	served(two[0]),
	{},
}

// served is what there is to know as long as there is a server, and behind which link.
func served(records ...dns.Record) State {
	return State{Records: records, Server: netip.MustParseAddrPort("172.30.0.1:53"), Link: "banger0", Domains: []string{"vm"}}
}

// way is one in which names are published. What it has changed outlives the process.
type way struct {
	kind, dir, bus string
	fake           *fakeResolved
}

func newWay(t *testing.T, kind string) *way {
	w := &way{kind: kind, dir: t.TempDir()}
	hosts := filepath.Join(w.dir, "hosts")
	switch kind {
	case "exec":
		makeTool(t, w.dir)
	case "resolved":
		w.fake, w.bus = fakeOnABus(t)
	default:
		must(t, os.WriteFile(hosts, []byte(othersLines), 0o644))
	}
	if kind == "mount" { // as in a container: it can't be replaced
		if err := unix.Mount(hosts, hosts, "", unix.MS_BIND, ""); err != nil {
			t.Skipf("SKIP: nothing can be mounted here: %v", err)
		}
		t.Cleanup(func() { must(t, unix.Unmount(hosts, 0)) })
	}
	return w
}

const othersLines = "127.0.0.1 localhost\n"

func (w *way) open(d door) Publisher {
	switch w.kind {
	case "exec":
		return &Exec{Command: []string{filepath.Join(w.dir, "tool"), w.dir}, Journal: filepath.Join(w.dir, "journal"), door: d}
	case "resolved":
		return &Resolved{
			connect: func() (*dbus.Conn, error) { return dbus.Connect(w.bus) },
			index:   func(string) (int, error) { return 7, nil }, door: d,
		}
	}
	return &Hosts{File: filepath.Join(w.dir, "hosts"), Owner: "/s", door: d}
}

// check fails the test unless the host knows s, and nothing else is left.
func (w *way) check(t *testing.T, when string, s State) {
	t.Helper()
	var knows, want string
	files := []string{"hosts"}
	switch w.kind {
	case "exec":
		o := &tool{t: t, dir: w.dir}
		o.calls() // which goes
		knows, files = o.knows(), []string{"names", "tool"}
		for _, r := range s.Records {
			want += r.Name + ".vm=" + r.Addr.String() + " "
		}
		if want = strings.TrimSpace(want); want != "" {
			files = []string{"journal", "names", "tool"}
		}
	case "resolved":
		knows, files = w.fake.knows(), nil
		if s.Server.IsValid() {
			want = "7 route=false family=2 172.30.0.1:53 vm/true"
		}
	default:
		knows, want = content(t, filepath.Join(w.dir, "hosts")), block{"/s"}.edit(othersLines, s.Records)
	}
	if knows != want {
		t.Errorf("%s it knows\n%s\nand not\n%s", when, knows, want)
	}
	entries, err := os.ReadDir(w.dir)
	must(t, err)
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	if !slices.Equal(found, files) {
		t.Errorf("%s there are the files %q", when, found)
	}
}

// Each way of publishing fails at each of its steps, and its process dies there. What comes
// next finds it so that it can be set right.
func TestEveryStepOfPublishing(t *testing.T) {
	for kind, least := range map[string]int{"hosts": 16, "mount": 20, "exec": 24, "resolved": 8} {
		for how, cut := range map[string]func(*testing.T, *way, int) bool{"fails": failAt, "is cut": dieAt} {
			t.Run(kind+" "+how, func(t *testing.T) {
				n := 1
				for ; cut(t, newWay(t, kind), n); n++ {
				}
				if n <= least {
					t.Errorf("it has %d steps only", n-1)
				}
			})
		}
	}
}

// failAt has one step fail, after which all is tried again. It tells whether there is such a step.
func failAt(t *testing.T, w *way, n int) (struck bool) {
	p := w.open(atStep(n, func() error { struck = true; return unix.EIO }))
	for i, s := range lives {
		before := struck
		err := p.Publish(t.Context(), s)
		if (err != nil) != (struck && !before) {
			t.Errorf("step %d fails (%t), and the error is %v", n, struck, err)
		}
		if err != nil {
			must(t, p.Publish(t.Context(), s))
		}
		w.check(t, fmt.Sprintf("after step %d failed, in life %d", n, i), s)
	}
	return struck
}

// dieAt has a process die at a step, and another come after it, for which something or nothing
// is to be known. It tells whether there is such a step.
func dieAt(t *testing.T, w *way, n int) (struck bool) {
	nexts := []State{lives[0], {}}
	if w.kind == "resolved" {
		nexts = nexts[:1] // with no bridge to serve on its link has gone, and all that it knew of it
	}
	for i, next := range nexts {
		if i > 0 {
			w = newWay(t, w.kind)
		}
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), cutEnv+"="+strings.Join([]string{strconv.Itoa(n), w.kind, w.dir, w.bus}, " "))
		out, err := c.CombinedOutput()
		if struck = c.ProcessState != nil && !c.ProcessState.Exited(); err != nil && !struck {
			t.Fatalf("step %d: %v\n%s", n, err, out)
		}
		p := w.open(nil)
		must(t, p.Publish(t.Context(), next))
		w.check(t, fmt.Sprintf("after it died at step %d", n), next)
		must(t, p.Withdraw(t.Context()))
		w.check(t, fmt.Sprintf("after it died at step %d, in the end", n), State{})
	}
	return struck
}
