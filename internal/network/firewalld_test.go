package network

import (
	"bufio"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// systemBus starts a message bus of the test's own, which is then this process's system bus.
func systemBus(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Skip("SKIP: dbus-daemon is not installed (Debian's dbus-daemon)")
	}
	config := filepath.Join(t.TempDir(), "bus.conf")
	must(t, os.WriteFile(config, []byte(`<busconfig><type>system</type><listen>unix:dir=`+filepath.Dir(config)+`</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy></busconfig>`), 0o600))
	c := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--nopidfile", "--print-address=1")
	out, err := c.StdoutPipe()
	must(t, err)
	if err := child(t, c, syscall.SIGKILL); err != nil {
		t.Skipf("SKIP: dbus-daemon does not start: %v", err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Skipf("SKIP: dbus-daemon does not serve here: %v", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", strings.TrimSpace(line))
}

// child starts a program that ends with the test, by a signal, or at the latest with this
// process: so says the kernel to the thread that started it, which is kept for that.
func child(t *testing.T, c *exec.Cmd, end syscall.Signal) error {
	t.Helper()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, over, ended := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.Start()
		started <- err
		if err != nil {
			return
		}
		<-over
		c.Process.Signal(end)
		c.Wait() // says only how it ended
	}()
	t.Cleanup(func() {
		close(over)
		<-ended
	})
	return <-started
}

// zones is a firewalld that keeps which interface is in which zone.
type zones struct {
	mu   sync.Mutex
	of   map[string]string
	kept map[string]string // after a reload
	deny bool
}

// keptZones is its interface for what is kept.
type keptZones struct{ *zones }

func (z keptZones) GetZoneOfInterface(link string) (string, *dbus.Error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.kept[link], nil
}

func (z *zones) GetZoneOfInterface(link string) (string, *dbus.Error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.of[link], nil
}

func (z *zones) AddInterface(zone, link string) (string, *dbus.Error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.deny || z.of[link] != "" {
		return "", dbus.NewError(firewalldBus+".Exception", []any{"ZONE_CONFLICT"})
	}
	z.of[link] = zone
	return zone, nil
}

func (z *zones) RemoveInterface(zone, link string) (string, *dbus.Error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.of[link] != zone {
		return "", dbus.NewError(firewalldBus+".Exception", []any{"UNKNOWN_INTERFACE"})
	}
	delete(z.of, link)
	return zone, nil
}

// set has the zones be what was configured, as a reload of firewalld does.
func (z *zones) set(kept map[string]string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.of, z.kept = maps.Clone(kept), kept
}

func (z *zones) refuse(deny bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.deny = deny
}

func (z *zones) text() string {
	z.mu.Lock()
	defer z.mu.Unlock()
	var all []string
	for _, link := range slices.Sorted(maps.Keys(z.of)) {
		all = append(all, link+" "+z.of[link])
	}
	return strings.Join(all, ", ")
}

// firewalld puts a fake one on the bus, with its table in the kernel.
func firewalld(t *testing.T) *zones {
	t.Helper()
	systemBus(t)
	conn, err := dbus.ConnectSystemBus()
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	z := &zones{of: map[string]string{"lan0": "public"}}
	methods := map[string]string{"GetZoneOfInterface": "getZoneOfInterface", "AddInterface": "addInterface", "RemoveInterface": "removeInterface"}
	must(t, conn.ExportWithMap(z, methods, firewalldPath, strings.TrimSuffix(firewalldZones, ".")))
	must(t, conn.ExportWithMap(keptZones{z}, methods, firewalldPath+"/config", strings.TrimSuffix(firewalldKept, ".")))
	if reply, err := conn.RequestName(firewalldBus, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("take the name: %v, %v", reply, err)
	}
	table := firewalldRules(t)
	t.Cleanup(func() {
		nft, err := nftables.New()
		must(t, err)
		nft.DelTable(table)
		must(t, nft.Flush())
	})
	return z
}

func firewalldRules(t *testing.T) *nftables.Table {
	t.Helper()
	nft, err := nftables.New()
	must(t, err)
	table := nft.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: firewalldTable})
	chain := nft.AddChain(&nftables.Chain{Name: "filter_FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	nft.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(inputInterface("nobody0", true).exprs, &expr.Verdict{Kind: expr.VerdictDrop})})
	must(t, nft.Flush())
	return table
}

func TestTheBridgeInFirewalldsZones(t *testing.T) {
	w := newWorld(t)
	z := firewalld(t)
	must(t, w.bridge.Watch())
	g := w.guest()
	want := w.bridge.name + " trusted, lan0 public"
	if got := z.text(); got != want {
		t.Fatalf("the zones are %q", got)
	}
	if text, _ := w.obstacles(); text != "" {
		t.Errorf("it is called an obstacle: %s", text)
	}
	// After a reload firewalld knows only what was configured, and writes its rules anew.
	z.set(map[string]string{"lan0": "public"})
	foreign(t, "reload firewalld")
	eventually(t, "the bridge is in its zone again", patience, func() bool { return z.text() == want })
	must(t, w.bridge.Detach(t.Context(), g.VM))
	w.nothingLeft()
	if got := z.text(); got != "lan0 public" {
		t.Errorf("afterwards the zones are %q", got)
	}
}

// Where someone has put the bridge is where it stays.
func TestAZoneThatSomeoneChose(t *testing.T) {
	w := newWorld(t)
	z := firewalld(t)
	name := w.bridge.Status().Bridge
	for _, zone := range []string{"work", trustedZone} {
		z.set(map[string]string{name: zone})
		g := w.guest()
		must(t, w.bridge.Detach(t.Context(), g.VM))
		w.nothingLeft()
		if got := z.text(); got != name+" "+zone {
			t.Errorf("the zones are %q", got)
		}
	}
}

// One that refuses is asked again, though nothing tells when it does no longer.
func TestAFirewalldThatRefuses(t *testing.T) {
	w := newWorld(t)
	z := firewalld(t)
	w.bridge.retryAfter = 50 * time.Millisecond
	must(t, w.bridge.Watch())
	z.refuse(true)
	w.guest()
	if problem := w.bridge.Status().Problem; !strings.Contains(problem, "have firewalld let guests by") {
		t.Errorf("the problem is %q", problem)
	}
	z.refuse(false)
	eventually(t, "the bridge is in its zone", patience, func() bool { return strings.Contains(z.text(), "banger0 trusted") })
	eventually(t, "there is no problem any more", patience, func() bool { return w.bridge.Status().Problem == "" })
}

// Rules of a firewalld that does not run any more.
func TestAFirewalldThatHasEnded(t *testing.T) {
	w := newWorld(t)
	systemBus(t)
	table := firewalldRules(t)
	t.Cleanup(func() {
		nft, err := nftables.New()
		must(t, err)
		nft.DelTable(table)
		must(t, nft.Flush())
	})
	w.guest()
	if problem := w.bridge.Status().Problem; problem != "" {
		t.Errorf("the problem is %q", problem)
	}
	if text, _ := w.obstacles(); !strings.Contains(text, "filter_FORWARD of the nftables table inet firewalld") {
		t.Errorf("named is %q", text)
	}
}

// The real one, with its real rules, in the tests' namespace.
func TestRealFirewalld(t *testing.T) {
	program, err := exec.LookPath("firewalld")
	if err != nil {
		t.Skip("SKIP: firewalld is not installed")
	}
	w := newWorld(t)
	systemBus(t)
	c := exec.Command(program, "--nofork", "--nopid")
	c.Stderr = t.Output()
	must(t, child(t, c, syscall.SIGTERM)) // then it takes its rules away
	eventually(t, "firewalld filters", 2*time.Minute, func() bool {
		filters, err := firewalldFilters()
		if err != nil || !filters {
			return false
		}
		conn, err := dbus.ConnectSystemBus()
		if err != nil {
			return false
		}
		defer conn.Close()
		var state string
		err = conn.Object(firewalldBus, firewalldPath).Call("org.freedesktop.DBus.Properties.Get", 0, firewalldBus, "state").Store(&state)
		return err == nil && state == "RUNNING"
	})
	a, b := w.guest(), w.guest()
	w.reaches(a.ns, webServer+":80", "web to "+hostOnLAN)
	w.reaches(a.ns, b.web(), "guest "+b.VM+" to "+a.Address.Addr().String())
	w.reaches(w.here(), a.web(), "guest "+a.VM+" to "+Gateway(w.subnet).String())
	if text, _ := w.obstacles(); strings.Contains(text, firewalldTable) {
		t.Errorf("it is called an obstacle: %s", text)
	}
	name := w.bridge.name
	for _, want := range []string{trustedZone, ""} {
		zone := "not asked"
		must(t, withFirewalld(func(call firewalldCall) (err error) {
			zone, err = call(firewalldZones+"getZoneOfInterface", name)
			return err
		}))
		if zone != want {
			t.Errorf("the zone of %s is %q, not %q", name, zone, want)
		}
		must(t, w.bridge.Restore(t.Context(), nil))
		w.nothingLeft()
	}
}
