package publish

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/vishvananda/netlink"
)

// fakeResolved is systemd-resolved as far as links go: it keeps what each was told.
type fakeResolved struct {
	mu    sync.Mutex
	links map[int32]*fakeLink
	fail  string // a method that is refused
	deaf  int    // so many calls it has not heard of any link yet
}

type fakeLink struct {
	servers []server
	domains []domain
	route   bool
}

func (f *fakeResolved) on(link int32, method string, do func(*fakeLink)) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deaf--
	if f.deaf >= 0 || link != 7 && link != 8 {
		return dbus.NewError(resolvedBus+".NoSuchLink", []any{fmt.Sprintf("Link %d not known", link)})
	}
	if f.fail == method {
		return dbus.NewError(resolvedBus+".LinkBusy", []any{"it is managed"})
	}
	if f.links[link] == nil {
		f.links[link] = &fakeLink{route: true}
	}
	do(f.links[link])
	return nil
}

func (f *fakeResolved) refuse(method string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = method
}

func (f *fakeResolved) SetLinkDNSEx(link int32, servers []server) *dbus.Error {
	return f.on(link, "SetLinkDNSEx", func(l *fakeLink) { l.servers = servers })
}

func (f *fakeResolved) SetLinkDomains(link int32, domains []domain) *dbus.Error {
	return f.on(link, "SetLinkDomains", func(l *fakeLink) { l.domains = domains })
}

func (f *fakeResolved) SetLinkDefaultRoute(link int32, enable bool) *dbus.Error {
	return f.on(link, "SetLinkDefaultRoute", func(l *fakeLink) { l.route = enable })
}

func (f *fakeResolved) RevertLink(link int32) *dbus.Error {
	return f.on(link, "RevertLink", func(*fakeLink) { delete(f.links, link) })
}

// knows is what each link was told.
func (f *fakeResolved) knows() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for i, l := range f.links {
		s := fmt.Sprintf("%d route=%t", i, l.route)
		for _, v := range l.servers {
			addr, _ := netip.AddrFromSlice(v.Address)
			s += fmt.Sprintf(" family=%d %s:%d", v.Family, addr, v.Port)
		}
		for _, d := range l.domains {
			s += fmt.Sprintf(" %s/%t", d.Name, d.RoutingOnly)
		}
		all = append(all, s)
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
}

// privateBus starts a message bus of the test's own and returns its address.
func privateBus(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Skip("SKIP: dbus-daemon is not installed (Debian's dbus-daemon)")
	}
	config := filepath.Join(t.TempDir(), "bus.conf")
	must(t, os.WriteFile(config, []byte(`<busconfig><type>session</type><listen>unix:dir=`+filepath.Dir(config)+`</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy></busconfig>`), 0o600))
	c := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--nopidfile", "--print-address=1")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.StdoutPipe()
	must(t, err)
	if err := c.Start(); err != nil {
		t.Skipf("SKIP: dbus-daemon does not start: %v", err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait() // says only that it was killed
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Skipf("SKIP: dbus-daemon does not serve here: %v", err)
	}
	return strings.TrimSpace(line)
}

// fakeOnABus puts one on a bus of its own, whose address it returns.
func fakeOnABus(t *testing.T) (f *fakeResolved, address string) {
	t.Helper()
	address = privateBus(t)
	conn, err := dbus.Connect(address)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	f = &fakeResolved{links: map[int32]*fakeLink{}}
	must(t, conn.Export(f, resolvedPath, strings.TrimSuffix(resolvedCall, ".")))
	reply, err := conn.RequestName(resolvedBus, dbus.NameFlagDoNotQueue)
	if err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("take the name: %v, %v", reply, err)
	}
	return f, address
}

func newFakeResolved(t *testing.T) (*fakeResolved, *Resolved) {
	t.Helper()
	f, address := fakeOnABus(t)
	links := map[string]int{"banger0": 7, "banger1": 8, "gone": 9}
	return f, &Resolved{
		connect: func() (*dbus.Conn, error) { return dbus.Connect(address) },
		index: func(link string) (int, error) {
			if i, ok := links[link]; ok {
				return i, nil
			}
			return 0, fmt.Errorf("no such network interface")
		},
	}
}

func routed(link string) State {
	return State{Server: netip.MustParseAddrPort("172.30.0.1:53"), Link: link, Domains: []string{"vm", "0.30.172.in-addr.arpa"}, Records: two}
}

const linkSet = "route=false family=2 172.30.0.1:53 vm/true 0.30.172.in-addr.arpa/true"

func TestResolved(t *testing.T) {
	f, r := newFakeResolved(t)
	want := func(step, knows string) {
		t.Helper()
		if got := f.knows(); got != knows {
			t.Errorf("%s: it knows %q, want %q", step, got, knows)
		}
	}
	must(t, r.Withdraw(t.Context()))
	want("nothing yet", "")
	for range 2 {
		must(t, r.Publish(t.Context(), routed("banger0")))
		want("set", "7 "+linkSet)
	}
	must(t, r.Publish(t.Context(), routed("banger1")))
	want("moved to another link", "8 "+linkSet)
	must(t, r.Publish(t.Context(), State{Link: "banger1"}))
	want("without a server", "")
	must(t, r.Publish(t.Context(), routed("banger0")))
	f.mu.Lock()
	f.links = map[int32]*fakeLink{} // it was restarted
	f.mu.Unlock()
	must(t, r.Publish(t.Context(), routed("banger0")))
	want("after its restart", "7 "+linkSet)
	must(t, r.Withdraw(t.Context()))
	want("withdrawn", "")
	must(t, r.Withdraw(t.Context()))
}

// It hears of a link, by netlink, later than whoever has made it.
func TestResolvedHearsOfALinkLater(t *testing.T) {
	f, r := newFakeResolved(t)
	r.within = time.Minute
	f.deaf = 3
	must(t, r.Publish(t.Context(), routed("banger0")))
	if got := f.knows(); got != "7 "+linkSet {
		t.Errorf("it knows %q", got)
	}
}

func TestResolvedThatRefuses(t *testing.T) {
	f, r := newFakeResolved(t)
	if err := r.Publish(t.Context(), routed("nope")); err == nil || !strings.Contains(err.Error(), "nope") {
		t.Errorf("no such link: %v", err)
	}
	if err := r.Publish(t.Context(), routed("gone")); err == nil || !strings.Contains(err.Error(), "Link 9 not known") {
		t.Errorf("a link it does not know: %v", err)
	}
	must(t, r.Withdraw(t.Context())) // nothing of it can be left
	f.refuse("SetLinkDomains")
	if err := r.Publish(t.Context(), routed("banger0")); err == nil || !strings.Contains(err.Error(), "it is managed") {
		t.Errorf("half of it refused: %v", err)
	}
	f.refuse("RevertLink")
	if err := r.Withdraw(t.Context()); err == nil {
		t.Error("no error of what could not be reverted")
	}
	f.refuse("")
	must(t, r.Withdraw(t.Context()))
	if got := f.knows(); got != "" {
		t.Errorf("left: %s", got)
	}
}

// One that does not answer holds nobody up for longer than they wait.
func TestResolvedThatIsSilent(t *testing.T) {
	f, r := newFakeResolved(t)
	f.mu.Lock()
	for what, do := range map[string]func(context.Context) error{
		"publish":  func(ctx context.Context) error { return r.Publish(ctx, routed("banger0")) },
		"withdraw": r.Withdraw,
	} {
		r.link = 7
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := do(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", what, err)
		}
		cancel()
	}
	f.mu.Unlock()
	must(t, r.Publish(t.Context(), routed("banger0")))
	if got := f.knows(); got != "7 "+linkSet {
		t.Errorf("once it answers it knows %q", got)
	}
}

func TestNoBus(t *testing.T) {
	r := NewResolved()
	r.connect = func() (*dbus.Conn, error) { return dbus.Connect("unix:path=" + filepath.Join(t.TempDir(), "none")) }
	r.index = func(string) (int, error) { return 7, nil }
	if err := r.Publish(t.Context(), routed("banger0")); err == nil || !strings.Contains(err.Error(), "systemd-resolved") {
		t.Errorf("got %v", err)
	}
}

// The real systemd-resolved asks our server, and is as it was when we are done.
func TestRealResolved(t *testing.T) {
	if err := ResolvedRuns(t.Context()); err != nil {
		t.Skipf("SKIP: systemd-resolved does not run here: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root can make a link")
	}
	const link = "banger-resolve"
	must(t, netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: link}}))
	l, err := netlink.LinkByName(link)
	must(t, err)
	t.Cleanup(func() { must(t, netlink.LinkDel(l)) })
	addr, err := netlink.ParseAddr("198.18.77.1/24")
	must(t, err)
	must(t, netlink.AddrAdd(l, addr))
	must(t, netlink.LinkSetUp(l))
	status := func() string {
		out, err := exec.Command("resolvectl", "status", link).CombinedOutput()
		if err != nil {
			t.Fatalf("resolvectl: %v\n%s", err, out)
		}
		return string(out)
	}
	before := status()
	stop := serveNames(t, netip.MustParseAddrPort("198.18.77.1:53"))
	defer stop()
	r := NewResolved()
	must(t, r.Publish(t.Context(), State{Server: netip.MustParseAddrPort("198.18.77.1:53"), Link: link, Domains: []string{"vm"}}))
	out, err := exec.Command("resolvectl", "query", "--legend=no", "web.vm").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "198.18.77.2") {
		t.Errorf("web.vm: %v\n%s\n%s", err, out, status())
	}
	must(t, r.Withdraw(t.Context()))
	if after := status(); after != before {
		t.Errorf("it was\n%s\nand is\n%s", before, after)
	}
}
