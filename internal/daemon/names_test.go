package daemon

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"banger/internal/config"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/store"
	"banger/internal/vm"
)

// fakeReach is a network in memory: addresses of VMs by name, and a bridge.
type fakeReach struct {
	mu    sync.Mutex
	addrs map[string]netip.Addr
	link  string
	addr  netip.Prefix
}

func (r *fakeReach) Address(v vm.VM) (netip.Addr, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.addrs[v.Name]
	return a, ok
}

func (r *fakeReach) Bridge() (string, netip.Prefix, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.link, r.addr, r.link != ""
}

// world is a store with VMs, a network, and a hosts file, that outlive the daemon.
type world struct {
	*testing.T
	config config.Config
	store  *store.Store
	reach  *fakeReach
}

const thisBoot = "this boot"

func newWorld(t *testing.T) *world {
	dir := t.TempDir()
	w := &world{T: t, reach: &fakeReach{addrs: map[string]netip.Addr{
		"web": netip.MustParseAddr("172.30.0.2"), "db": netip.MustParseAddr("172.30.0.3"),
	}}}
	w.config = config.Config{StateDir: dir, DNS: config.DNS{Publish: "hosts", HostsFile: filepath.Join(dir, "hosts"), Listen: netip.MustParseAddrPort("127.0.0.1:0")}}
	w.write("127.0.0.1 localhost\n")
	s, err := store.Open(t.Context(), filepath.Join(dir, "db"))
	w.ok(err)
	t.Cleanup(func() { w.ok(s.Close()) })
	w.store = s
	return w
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) write(text string) { w.ok(os.WriteFile(w.config.DNS.HostsFile, []byte(text), 0o644)) }

func (w *world) hosts() string {
	text, err := os.ReadFile(w.config.DNS.HostsFile)
	w.ok(err)
	return string(text)
}

func (w *world) open() *names {
	w.Helper()
	n, err := openNames(context.Background(), w.config, w.store, w.reach, thisBoot, slog.New(slog.NewTextHandler(w.Output(), nil)))
	w.ok(err)
	return n
}

// crash ends a daemon's part without anything that it does at its end.
func (w *world) crash(n *names) {
	n.cancel()
	n.loops.Wait()
	w.ok(n.host.close())
	w.ok(n.guest.close())
	w.ok(n.resolvers.Close())
}

func (w *world) create(id, name string, state vm.State, boot string) {
	w.ok(w.store.Create(w.Context(), vm.VM{ID: id, Name: name, State: state, Machine: &hypervisor.Record{Process: host.Process{BootID: boot}}}))
}

func (w *world) become(id string, state vm.State) {
	_, err := w.store.Update(w.Context(), id, "test", func(v *vm.VM) error { v.State = state; return nil })
	w.ok(err)
}

// within waits a second for something to hold.
func (w *world) within(what string, holds func() bool) {
	w.Helper()
	w.until(time.Second, what, holds)
}

func (w *world) until(limit time.Duration, what string, holds func() bool) {
	w.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("%s: not after %s; the hosts file is\n%s", what, limit, w.hosts())
		}
	}
}

// resolves is the address that the daemon answers the host with, or a code.
func (w *world) resolves(n *names, name string) string {
	w.Helper()
	r, err := mdns.Exchange(new(mdns.Msg).SetQuestion(name+".", mdns.TypeA), n.Status().Listeners[0].Address)
	w.ok(err)
	if len(r.Answer) == 1 {
		return r.Answer[0].(*mdns.A).A.String()
	}
	return mdns.RcodeToString[r.Rcode]
}

func TestNamesFollowTheVMs(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	known := func(name, addr string) func() bool {
		return func() bool {
			return w.resolves(n, name) == addr && strings.Contains(w.hosts(), "\t"+name+"\t") == (addr != "NXDOMAIN")
		}
	}
	w.create("aa", "web", vm.Creating, thisBoot)
	w.create("cc", "user", vm.Running, thisBoot) // the host can't reach it
	w.create("dd", "db", vm.Running, "another boot")
	if err := n.derive(t.Context()); err != nil || len(n.Records()) != 0 {
		t.Errorf("records: %v, %v", n.Records(), err)
	}
	w.become("aa", vm.Running)
	w.within("it runs", known("web.vm", "172.30.0.2"))
	if got := n.Name("aa"); got != "web.vm" {
		t.Errorf("its name is %q", got)
	}
	if got := n.Name("cc") + n.Name("dd"); got != "" {
		t.Errorf("the others' names: %q", got)
	}
	w.become("aa", vm.Paused)
	w.within("it is paused", known("web.vm", "172.30.0.2"))
	w.become("aa", vm.Stopping)
	w.within("it ends", known("web.vm", "NXDOMAIN"))
	w.become("aa", vm.Running)
	w.within("it runs again", known("web.vm", "172.30.0.2"))
	w.ok(w.store.Delete(t.Context(), "aa", "rm"))
	w.within("it is removed", known("web.vm", "NXDOMAIN"))
	// Another of its name and address.
	w.create("ee", "web", vm.Running, thisBoot)
	w.within("the name is used again", known("web.vm", "172.30.0.2"))
	if all := n.Records(); len(all) != 1 || all[0].VM != "ee" {
		t.Errorf("records: %v", all)
	}
	w.ok(n.close())
	if got := w.hosts(); got != "127.0.0.1 localhost\n" {
		t.Errorf("after the end: %q", got)
	}
}

func TestNamesAfterACrash(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	w.create("aa", "web", vm.Running, thisBoot)
	w.create("bb", "db", vm.Running, thisBoot)
	w.within("both run", func() bool { return strings.Contains(w.hosts(), "web.vm") && strings.Contains(w.hosts(), "db.vm") })
	w.crash(n)
	w.ok(w.store.Delete(t.Context(), "aa", "rm")) // as if that had been the last thing before
	if !strings.Contains(w.hosts(), "web.vm") {
		t.Error("the crash was none")
	}
	n = w.open()
	if w.resolves(n, "db.vm") != "172.30.0.3" || w.resolves(n, "web.vm") != "NXDOMAIN" {
		t.Error("names are wrong after the start")
	}
	w.within("the hosts file", func() bool { return !strings.Contains(w.hosts(), "web.vm") && strings.Contains(w.hosts(), "db.vm") })
	w.crash(n)
	// Configured otherwise since.
	w.config.DNS.Publish = "none"
	n = w.open()
	w.within("the hosts file", func() bool { return w.hosts() == "127.0.0.1 localhost\n" })
	w.ok(n.close())
}

// A command that publishes is called by the next daemon for what it missed, and one that hangs
// keeps nobody from the name server's answers, nor the daemon from its end.
func TestNamesByACommand(t *testing.T) {
	w := newWorld(t)
	const patience = 20 * time.Second // for programs that are started, on a busy machine
	dir := t.TempDir()
	script := "#!/bin/sh\n[ ! -e " + dir + "/hang ] || exec sleep 1000\ncase $1 in set) echo $3 >" + dir + "/$2 ;; del) rm -f " + dir + "/$2 ;; esac\n"
	tool := filepath.Join(t.TempDir(), "tool")
	w.ok(os.WriteFile(tool, []byte(script), 0o755))
	w.config.DNS.Publish, w.config.DNS.Exec = "exec", []string{tool}
	knows := func(want string) func() bool {
		return func() bool {
			found, err := filepath.Glob(filepath.Join(dir, "*.vm"))
			w.ok(err)
			var all []string
			for _, f := range found {
				all = append(all, filepath.Base(f))
			}
			return strings.Join(all, " ") == want
		}
	}
	n := w.open()
	w.create("aa", "web", vm.Running, thisBoot)
	w.until(patience, "it is told", knows("web.vm"))
	w.crash(n)
	w.ok(w.store.Delete(t.Context(), "aa", "rm"))
	w.create("bb", "db", vm.Running, thisBoot)
	n = w.open()
	w.until(patience, "the next daemon tells it", knows("db.vm"))
	w.ok(os.WriteFile(filepath.Join(dir, "hang"), nil, 0o600))
	w.create("cc", "web", vm.Running, thisBoot)
	w.until(patience, "it is served all the same", func() bool { return w.resolves(n, "web.vm") == "172.30.0.2" })
	w.crash(n) // which waits for no command
	w.ok(os.Remove(filepath.Join(dir, "hang")))
	n = w.open()
	w.until(patience, "what it missed is told", knows("db.vm web.vm"))
	w.ok(n.close())
	w.until(patience, "all is taken back", knows(""))
}

// The census sees our lines, and none of what has just been removed.
func TestHostsLinesInTheCensus(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	defer func() { w.ok(n.close()) }()
	for range 20 {
		w.create("aa", "web", vm.Running, thisBoot)
		found, err := n.objects(t.Context())
		if err != nil || len(found) != 1 || found[0].Path != "aa" || found[0].Kind != "hosts line" || !strings.Contains(found[0].Name, "172.30.0.2 web.vm") {
			t.Fatalf("found %v, %v", found, err)
		}
		w.ok(w.store.Delete(t.Context(), "aa", "rm"))
		if found, err := n.objects(t.Context()); err != nil || len(found) != 0 {
			t.Fatalf("after its end: %v, %v", found, err)
		}
	}
}

// The doctor resolves a name in each way that it should be known.
func TestANameIsTried(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	defer func() { w.ok(n.close()) }()
	web := netip.MustParseAddr("172.30.0.2")
	w.create("aa", "web", vm.Running, thisBoot)
	w.within("the name is known", func() bool { return n.try(t.Context(), "web.vm", web) == nil })
	if err := n.try(t.Context(), "web.vm", web.Next()); err == nil || !strings.Contains(err.Error(), "it says 172.30.0.2") {
		t.Errorf("another address: %v", err)
	}
	w.write("127.0.0.1 localhost\n") // someone takes our lines away
	if err := n.try(t.Context(), "web.vm", web); errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), w.config.DNS.HostsFile) {
		t.Errorf("without our lines: %v", err)
	}
	if err := tryHost(t.Context(), "localhost", netip.MustParseAddr("127.0.0.1")); err != nil {
		t.Errorf("a name that this host knows: %v", err)
	}
	if err := tryHost(t.Context(), "web.invalid", web); errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "" {
		t.Errorf("a name that it does not know: %v", err)
	}
}

func TestStatusTellsOfProblems(t *testing.T) {
	w := newWorld(t)
	real := w.config.DNS.HostsFile + ".real"
	w.ok(os.Rename(w.config.DNS.HostsFile, real))
	w.ok(os.Symlink(real, w.config.DNS.HostsFile))
	n := w.open()
	if s := n.Status(); s.Problem != "" || s.Publisher != "hosts" || len(s.Listeners) != 1 || s.Listeners[0].For != "host" {
		t.Errorf("before there is a name: %+v", s)
	}
	w.create("aa", "web", vm.Running, thisBoot)
	w.within("a problem", func() bool { return strings.Contains(n.Status().Problem, "symbolic link") && n.Status().Hint != "" })
	// The address is taken: names are known all the same.
	other := newWorld(t)
	other.config.DNS.Listen = netip.MustParseAddrPort(n.Status().Listeners[0].Address)
	m := other.open()
	if s := m.Status(); s.Listeners[0].Problem == "" {
		t.Errorf("an address that is taken: %+v", s)
	}
	other.create("aa", "web", vm.Running, thisBoot)
	other.within("the hosts file", func() bool { return strings.Contains(other.hosts(), "web.vm") })
	w.ok(m.close())
	w.ok(n.close())
}

func TestGuestsAreServedOnTheBridge(t *testing.T) {
	w := newWorld(t)
	w.reach.link, w.reach.addr = "banger0", netip.MustParsePrefix("127.0.77.1/24") // this host's own, as a bridge's would be
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root may listen on port 53")
	}
	n := w.open()
	defer func() { w.ok(n.close()) }()
	s := n.Status()
	if len(s.Listeners) != 2 || s.Listeners[1].For != "guests" || s.Listeners[1].Address != "127.0.77.1:53" || s.Listeners[1].Problem != "" {
		t.Fatalf("%+v", s.Listeners)
	}
	n.mu.Lock()
	state := n.state
	n.mu.Unlock()
	if state.Link != "banger0" || state.Server.String() != "127.0.77.1:53" || strings.Join(state.Domains, " ") != "vm 77.0.127.in-addr.arpa" {
		t.Errorf("what is published: %+v", state)
	}
	w.reach.mu.Lock()
	w.reach.link = ""
	w.reach.mu.Unlock()
	if err := n.derive(t.Context()); err != nil || len(n.Status().Listeners) != 1 {
		t.Errorf("without the bridge: %+v, %v", n.Status().Listeners, err)
	}
}
