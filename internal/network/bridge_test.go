package network

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/network/networktest"
)

func TestGuestsReachWhatTheyMay(t *testing.T) {
	w := newWorld(t)
	here := w.here()
	w.serve(here, ":8080", "host")
	a, b := w.guest(), w.guest()
	lonely := w.guest(func(p *Port) { p.Isolated = true })
	trusted := w.guest(func(p *Port) { p.HostAccess = true })
	gateway := Gateway(w.subnet).String()

	w.reaches(a.ns, webServer+":80", "web to "+hostOnLAN) // as the host
	w.reaches(lonely.ns, webServer+":80", "web to "+hostOnLAN)
	w.reaches(here, a.web(), "guest "+a.VM+" to "+gateway)
	w.reaches(here, lonely.web(), "guest "+lonely.VM+" to "+gateway)
	w.reaches(a.ns, b.web(), "guest "+b.VM+" to "+a.Address.Addr().String()) // as itself
	w.blocked(a.ns, lonely.web())
	w.blocked(lonely.ns, a.web())
	for from, to := range map[*guest]*guest{a: lonely, lonely: a, b: a} { // not by way of the host either
		w.route(from.ns, to.Address.Addr().String()+"/32", gateway)
	}
	w.blocked(a.ns, lonely.web())
	w.blocked(lonely.ns, a.web())
	w.reaches(b.ns, a.web(), "guest "+a.VM+" to "+b.Address.Addr().String())

	for _, address := range []string{gateway, hostOnLAN} {
		w.blocked(a.ns, address+":8080")
		w.reaches(trusted.ns, address+":8080", "host to "+trusted.Address.Addr().String())
	}
	if got := ask(a.ns, "169.254.169.254:80", refusal); got != "" {
		t.Errorf("the cloud's secrets: %q", got)
	}
	w.reaches(here, gateway+":8080", "host to "+gateway)
	from := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(gateway)}}
	if got := askBy(from, here, webServer+":80"); got != "web to "+hostOnLAN {
		t.Errorf("what the host asks from its address among the guests: %q", got)
	}
	w.route(w.lan, w.subnet.String(), hostOnLAN)
	w.blocked(w.lan, a.web())
	w.blocked(w.lan, gateway+":8080") // nor is what the host has there for its guests
}

// What did not forward before forwards for guests only.
func TestForwardingIsForGuestsOnly(t *testing.T) {
	w := newWorld(t)
	other := namespace(t)
	w.veth("vpn0", "203.0.113.1", other, "203.0.113.2")
	w.serve(other, "203.0.113.2:80", "vpn")
	w.route(w.lan, "203.0.113.0/24", hostOnLAN)
	w.route(other, "198.51.100.0/24", "203.0.113.1")
	w.blocked(w.lan, "203.0.113.2:80")
	g := w.guest()
	w.reaches(g.ns, "203.0.113.2:80", "vpn to 203.0.113.1")
	w.blocked(w.lan, "203.0.113.2:80")
	must(t, w.bridge.Detach(t.Context(), g.VM))
	w.nothingLeft()
	for _, name := range []string{"all", "default", "lan0", "vpn0"} {
		if on, err := forwards(name); err != nil || on {
			t.Errorf("%s forwards still: %v", name, err)
		}
	}
}

// An interface that comes later is one more way out.
func TestAnInterfaceThatComesLater(t *testing.T) {
	w := newWorld(t)
	must(t, w.bridge.Watch())
	g := w.guest()
	other := namespace(t)
	w.veth("vpn0", "203.0.113.1", other, "203.0.113.2")
	w.serve(other, "203.0.113.2:80", "vpn")
	eventually(t, "the new interface forwards", patience, func() bool { on, _ := forwards("vpn0"); return on })
	w.reaches(g.ns, "203.0.113.2:80", "vpn to 203.0.113.1")
	if text := w.notices(); text != "" {
		t.Errorf("nobody had to know: %s", text)
	}
}

// A host that forwards already goes on doing so.
func TestForwardingThatOthersWant(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	must(t, setForwarding("all", true)) // Docker starts, say
	t.Cleanup(func() { setForwarding("all", false) })
	must(t, w.bridge.Detach(t.Context(), g.VM))
	w.nothingLeft()
	if on, err := forwards("lan0"); err != nil || !on {
		t.Errorf("lan0 does not forward any more, %v", err)
	}
}

// Nor does it stop when someone who wanted it does no longer.
func TestForwardingThatOthersSwitchOff(t *testing.T) {
	w := newWorld(t)
	must(t, w.bridge.Watch())
	must(t, setForwarding("all", true))
	t.Cleanup(func() { setForwarding("all", false) })
	g := w.guest()
	must(t, setForwarding("all", false))
	eventually(t, "lan0 and the bridge forward", patience, func() bool {
		lan, _ := forwards("lan0")
		bridge, _ := forwards(w.bridge.Status().Bridge)
		return lan && bridge
	})
	w.reaches(g.ns, webServer+":80", "web to "+hostOnLAN)
	must(t, w.bridge.Detach(t.Context(), g.VM))
	w.nothingLeft()
	if on, err := forwards("lan0"); err != nil || on {
		t.Errorf("lan0 forwards still, %v", err)
	}
}

// nothingLeft checks that nothing of ours is on the host.
func (w *world) nothingLeft() {
	w.t.Helper()
	found, err := w.bridge.Objects()
	if err != nil || len(found) > 0 {
		w.t.Errorf("left: %v, %v", found, err)
	}
	if _, err := os.Stat(filepath.Join(w.state, "forwarding.json")); !errors.Is(err, fs.ErrNotExist) {
		w.t.Errorf("what was opened is remembered still: %v", err)
	}
}

func (w *world) route(ns netns.NsHandle, to, via string) {
	w.t.Helper()
	must(w.t, networktest.In(ns, func() error {
		_, dst, err := net.ParseCIDR(to)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)})
	}))
}

// foreign runs a helper of TestMain's: another process that works on the same host.
func foreign(t *testing.T, what string) {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), helper+"="+what)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", what, err, out)
	}
}

func TestAFlushIsMended(t *testing.T) {
	w := newWorld(t)
	must(t, w.bridge.Watch())
	g := w.guest()
	foreign(t, "flush")
	eventually(t, "the rules are there again", 10*time.Second, func() bool {
		w.bridge.mu.Lock()
		defer w.bridge.mu.Unlock()
		same, err := intact(w.bridge.rules)
		return err == nil && same
	})
	w.reaches(g.ns, webServer+":80", "web to "+hostOnLAN)
	if !strings.Contains(w.notices(), "someone changed") {
		t.Errorf("nobody was told: %q", w.notices())
	}
}

// A single rule or element that is missing is seen too.
func TestIntactSeesEverything(t *testing.T) {
	w := newWorld(t)
	w.guest()
	same := func() bool {
		ok, err := intact(w.bridge.rules)
		must(t, err)
		return ok
	}
	for _, table := range slices.Clone(w.bridge.rules) {
		for _, harm := range harms(t, table) {
			if !same() {
				t.Fatal("not even at the beginning")
			}
			conn, err := nftables.New()
			must(t, err)
			harm.do(conn)
			must(t, conn.Flush())
			if same() {
				t.Errorf("not seen: %s", harm.what)
			}
			w.bridge.rules = nil
			must(t, w.bridge.apply())
		}
	}
}

type harm struct {
	what string
	do   func(*nftables.Conn)
}

func harms(t *testing.T, table Table) (all []harm) {
	where := &nftables.Table{Family: table.Family, Name: table.Name}
	all = append(all, harm{"no table", func(c *nftables.Conn) { c.DelTable(where) }})
	for _, chain := range table.Chains {
		at := &nftables.Chain{Table: where, Name: chain.Name}
		for i := range chain.Rules {
			all = append(all, harm{fmt.Sprintf("rule %d of %s", i, chain.Name), func(c *nftables.Conn) {
				rules, err := c.GetRules(where, at)
				must(t, err)
				must(t, c.DelRule(rules[i]))
			}})
		}
	}
	for _, set := range table.Sets {
		for _, e := range set.Elements {
			all = append(all, harm{"element " + e.Text, func(c *nftables.Conn) {
				must(t, c.SetDeleteElements(&nftables.Set{Table: where, Name: set.Name, KeyType: set.Type}, []nftables.SetElement{{Key: e.Key}}))
			}})
		}
	}
	return all
}

// Docker drops what it does not know, in FORWARD, which bridged frames cross as well.
func TestBesideDocker(t *testing.T) {
	w := newWorld(t)
	here := w.here()
	docker(t)
	before := foreignRules(t, w)
	a, b := w.guest(), w.guest()
	w.reaches(a.ns, webServer+":80", "web to "+hostOnLAN)
	w.reaches(a.ns, b.web(), "guest "+b.VM+" to "+a.Address.Addr().String())
	w.reaches(here, a.web(), "guest "+a.VM+" to "+Gateway(w.subnet).String())
	w.route(w.lan, w.subnet.String(), hostOnLAN)
	w.blocked(w.lan, a.web())
	must(t, errors.Join(w.bridge.Detach(t.Context(), a.VM), w.bridge.Detach(t.Context(), b.VM)))
	w.nothingLeft()
	if after := foreignRules(t, w); after != before {
		t.Errorf("others' rules were\n%s\nand are\n%s", before, after)
	}
}

// docker sets up the rules that Docker has, as iptables-nft writes them.
func docker(t *testing.T) {
	t.Helper()
	conn, err := nftables.New()
	must(t, err)
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	policy := nftables.ChainPolicyDrop
	forward := conn.AddChain(&nftables.Chain{Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy})
	users := conn.AddChain(&nftables.Chain{Name: "DOCKER-USER", Table: table})
	conn.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: users.Name}}})
	conn.AddRule(&nftables.Rule{Table: table, Chain: users, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictReturn}}})
	must(t, conn.Flush())
	t.Cleanup(func() {
		conn.DelTable(table)
		must(t, conn.Flush())
	})
}

// foreignRules lists all rules that are not in our tables.
func foreignRules(t *testing.T, w *world) string {
	t.Helper()
	conn, err := nftables.New()
	must(t, err)
	chains, err := conn.ListChains()
	must(t, err)
	var text strings.Builder
	for _, c := range chains {
		if c.Table.Name == tableName(w.state) {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		must(t, err)
		for _, r := range rules {
			fmt.Fprintf(&text, "%s %s %d %q\n", c.Table.Name, c.Name, r.Handle, commentOf(r))
		}
	}
	return text.String()
}

// A subnet is chosen that nobody has; one that is taken later is told of.
func TestOverlapThatComesLater(t *testing.T) {
	w := newWorld(t)
	must(t, w.bridge.Watch())
	g := w.guest()
	vpn := namespace(t)
	w.veth("vpn0", "203.0.113.1", vpn, "203.0.113.2")
	w.route(w.here(), netip.PrefixFrom(w.subnet.Addr(), 16).Masked().String(), "203.0.113.2")
	eventually(t, "the overlap is told of", patience, func() bool { return strings.Contains(w.notices(), "vpn0; to move it: banger network move") })
	if err := w.bridge.CheckSubnet(w.subnet); errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "vpn0") {
		t.Errorf("the subnet that overlaps: %v", err)
	}
	moved, err := w.bridge.ChooseSubnet()
	must(t, err)
	if moved.Overlaps(w.subnet) {
		t.Fatalf("%s is chosen again", moved)
	}
	p := g.Port
	p.Address, err = Allocate(moved, p.VM, func(netip.Addr) bool { return false })
	must(t, err)
	must(t, w.bridge.Restore(t.Context(), []Port{p}))
	must(t, networktest.In(g.ns, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		old, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrDel(l, &old[0]), up(l, p.Address.String()),
			netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: Gateway(moved).AsSlice()}))
	}))
	w.reaches(g.ns, webServer+":80", "web to "+hostOnLAN)
	w.reaches(w.here(), p.Address.Addr().String()+":80", "guest "+p.VM+" to "+Gateway(moved).String())
	w.subnet = moved
}

// Another's bridge with our very subnet is told of, for as long as it is there.
func TestARivalBridge(t *testing.T) {
	w := newWorld(t)
	must(t, w.bridge.Watch())
	g := w.guest()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "rival0"
	rival := &netlink.Bridge{LinkAttrs: attrs}
	must(t, netlink.LinkAdd(rival))
	t.Cleanup(func() { netlink.LinkDel(rival) })
	must(t, up(rival, netip.PrefixFrom(Gateway(w.subnet).Next(), w.subnet.Bits()).String()))
	eventually(t, "it is told of", patience, func() bool { return strings.Contains(w.notices(), "of rival0; to move it: banger network move") })
	if s := w.bridge.Status(); !strings.Contains(s.Overlap, "rival0") {
		t.Errorf("the status is %+v", s)
	}
	w.reaches(w.here(), g.web(), "guest "+g.VM+" to "+Gateway(w.subnet).String())
	if next, err := w.bridge.ChooseSubnet(); err != nil || next.Overlaps(w.subnet) {
		t.Errorf("%s is chosen, %v", next, err)
	}
	must(t, netlink.LinkDel(rival))
	eventually(t, "it is told of no longer", patience, func() bool { return w.bridge.Status().Overlap == "" })
}

// What a VMM holds goes on through the end of a daemon and the start of the next.
func TestARestartOfTheDaemon(t *testing.T) {
	w := newWorld(t)
	a, gone := w.guest(), w.guest()
	old := w.bridge
	w.open()
	must(t, old.Close())
	w.reaches(a.ns, webServer+":80", "web to "+hostOnLAN) // while there is none
	must(t, w.bridge.Restore(t.Context(), []Port{a.Port}))
	w.reaches(a.ns, webServer+":80", "web to "+hostOnLAN)
	w.blocked(gone.ns, webServer+":80")
	if links, err := ownLinks(ownerAlias(w.state)); err != nil || len(links) != 2 {
		t.Errorf("interfaces: %v, %v", links, err)
	}
}

// A TAP that a VMM opens by its name waits for it, and goes with its VM, whoever had it open.
func TestATAPOpenedByName(t *testing.T) {
	w := newWorld(t)
	p := w.port()
	p.ByName = true
	const vmmUser, stranger = 0x70000001, 65534
	p.Owner = vmmUser
	for range 2 { // again while the first is still being taken away
		f, err := w.bridge.Attach(t.Context(), p)
		if err != nil || f != nil {
			t.Fatalf("attached with %v, %v", f, err)
		}
		if err := openAs(t, vmmUser, TAP(p.VM)); err != nil {
			t.Errorf("its VMM can't open it: %v", err)
		}
		if err := openAs(t, stranger, TAP(p.VM)); !errors.Is(err, unix.EPERM) {
			t.Errorf("while nobody has it open, another user of the host's may: %v", err)
		}
		vmm, err := openTAP(TAP(p.VM))
		if err != nil {
			t.Fatalf("it can't be opened: %v", err)
		}
		if second, err := openTAP(TAP(p.VM)); err == nil {
			t.Errorf("it can be opened twice: %v", second)
		}
		vmm.Close()
		if _, err := netlink.LinkByName(TAP(p.VM)); err != nil {
			t.Errorf("it is gone with the VMM, and its row is still there: %v", err)
		}
		must(t, w.bridge.Detach(t.Context(), p.VM))
	}
	left, err := w.bridge.Objects()
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := netlink.LinkByName(TAP(p.VM)); err == nil {
		t.Error("it is left")
	}
}

// openAs opens a TAP, and closes it, as a user without privileges does: /dev/net/tun is for all.
func openAs(t *testing.T, user uintptr, name string) error {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	must(t, err)
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	must(t, err)
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	become := func(uid uintptr) { // of this thread alone, which newWorld has locked
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uid, ^uintptr(0)); errno != 0 {
			panic(errno)
		}
	}
	become(user)
	defer become(0)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
}

func TestFiftyAtOnce(t *testing.T) {
	w := newWorld(t)
	ports := make([]Port, 50)
	taken := map[netip.Addr]bool{}
	for i := range ports {
		id := fmt.Sprintf("%012x", 0xabc000+i)
		a, err := Allocate(w.subnet, id, func(a netip.Addr) bool { return taken[a] })
		must(t, err)
		taken[a.Addr()] = true
		ports[i] = Port{VM: id, MAC: fmt.Sprintf("02:00:00:00:01:%02x", i), Address: a}
	}
	var wg sync.WaitGroup
	for _, p := range ports {
		wg.Go(func() {
			if _, err := w.bridge.Attach(t.Context(), p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	found, err := w.bridge.Objects()
	must(t, err)
	kinds := map[string]int{}
	for _, o := range found {
		kinds[o.Kind]++
	}
	// TAPs and the bridge; its address; the route by it; two tables; lan0's forwarding.
	if want := map[string]int{"link": 50 + 1, "address": 1, "route": 1, "nft": 2, "sysctl": 1}; !maps.Equal(kinds, want) {
		t.Errorf("%v: %v", kinds, found)
	}
	for _, p := range ports {
		wg.Go(func() {
			if err := w.bridge.Detach(t.Context(), p.VM); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.nothingLeft()
}

func TestNamesOfTheBridge(t *testing.T) {
	w := newWorld(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "banger0"
	rival := &netlink.Bridge{LinkAttrs: attrs}
	must(t, netlink.LinkAdd(rival))
	t.Cleanup(func() { netlink.LinkDel(rival) })
	w.guest()
	if w.bridge.name != "banger1" {
		t.Errorf("the bridge is called %s", w.bridge.name)
	}
	theirs := Open(Options{State: t.TempDir(), Name: "banger0", Log: slog.New(slog.DiscardHandler)})
	if err := theirs.Check(); errs.KindOf(err) != errs.Conflict || errs.HintOf(err) == "" {
		t.Errorf("someone's interface as a bridge: %v", err)
	}
	for _, bad := range []string{"", "0123456789abcdef", "a/b", "..", "all", "default", "lo", "a b", "a\n", "bgr0123456789ab", "ä"} {
		if err := CheckBridgeName(bad); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Two bangers on a host know nothing of each other.
func TestTwoBangersOnAHost(t *testing.T) {
	w := newWorld(t)
	v := &world{t: t, state: t.TempDir(), lan: w.lan}
	a := w.guest()
	v.open()
	b := v.guest()
	if w.subnet.Overlaps(v.subnet) || w.bridge.name == v.bridge.name {
		t.Fatalf("both have %s and %s on %s and %s", w.subnet, v.subnet, w.bridge.name, v.bridge.name)
	}
	w.reaches(a.ns, webServer+":80", "web to "+hostOnLAN)
	w.reaches(b.ns, webServer+":80", "web to "+hostOnLAN)
	w.blocked(a.ns, b.web())
	must(t, v.bridge.Watch())
	must(t, w.bridge.Detach(t.Context(), a.VM)) // which had lan0 forward
	w.nothingLeft()
	eventually(t, "lan0 forwards for the other", patience, func() bool { on, _ := forwards("lan0"); return on })
	w.reaches(b.ns, webServer+":80", "web to "+hostOnLAN)
	must(t, v.bridge.Detach(t.Context(), b.VM))
	v.nothingLeft()
	if on, err := forwards("lan0"); err != nil || on {
		t.Errorf("lan0 forwards still, %v", err)
	}
}
