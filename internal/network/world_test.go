package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/network/networktest"
)

// inside marks the process that TestMain has started in a network namespace of its own: no
// interface of the real host is ever touched.
const inside = "BANGER_TEST_NETNS"

// helper names what a process that a test starts is to do in the namespace, for it to be
// someone else's.
const helper = "BANGER_TEST_HELPER"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(helper) == "listen":
		err := TryListen(Forward{Protocol: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:80"), Guest: 80})
		fmt.Printf("%v; %s", err, errs.HintOf(err))
		os.Exit(0)
	case os.Getenv(helper) != "":
		conn, err := nftables.New()
		if err == nil {
			conn.FlushRuleset()
			if os.Getenv(helper) == "reload firewalld" {
				conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: firewalldTable})
			}
			err = conn.Flush()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case os.Getenv(inside) != "":
		// What a test mounts is seen by nobody else.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintf(os.Stderr, "mounts of the tests' own: %v\n", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case os.Geteuid() != 0:
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := c.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		fmt.Fprintf(os.Stderr, "no namespace for tests: %v\n", err)
		os.Exit(1)
	}
	os.Exit(c.ProcessState.ExitCode())
}

// world is a host with a network around it: a LAN with a web server at .2, which the host is
// at .1 of, by the interface lan0.
type world struct {
	t      *testing.T
	state  string
	lan    netns.NsHandle
	bridge *Bridge
	subnet netip.Prefix

	mu      sync.Mutex
	noticed []string
}

const (
	hostOnLAN = "198.51.100.1"
	webServer = "198.51.100.2"
)

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("SKIP: network namespaces take root")
	}
	w := &world{t: t, state: t.TempDir()}
	w.lan = namespace(t)
	must(t, networktest.In(w.here(), func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	}))
	w.veth("lan0", hostOnLAN, w.lan, webServer)
	w.serve(w.lan, webServer+":80", "web")
	w.open()
	return w
}

// open opens the bridge as a starting daemon does.
func (w *world) open() {
	w.t.Helper()
	w.bridge = Open(Options{State: w.state, BootID: "boot-1", Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)), Noticed: func(s string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.noticed = append(w.noticed, s)
	}})
	must(w.t, w.bridge.Check())
	b := w.bridge
	w.t.Cleanup(func() { // whatever the test has left is taken away, and must all go
		if w.bridge != b {
			return
		}
		must(w.t, b.Restore(context.Background(), nil))
		if left, err := b.Objects(); err != nil || len(left) > 0 {
			w.t.Errorf("left behind: %v, %v", left, err)
		}
		must(w.t, b.Close())
	})
	if !w.subnet.IsValid() {
		var err error
		w.subnet, err = b.ChooseSubnet()
		must(w.t, err)
	}
}

func (w *world) notices() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.noticed, "\n")
}

func (w *world) here() netns.NsHandle {
	ns, err := netns.Get()
	must(w.t, err)
	w.t.Cleanup(func() { ns.Close() })
	return ns
}

// namespace makes a network namespace, which goes with the test.
func namespace(t *testing.T) (ns netns.NsHandle) {
	t.Helper()
	err := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: this thread is of another world
		var e error
		ns, e = netns.New()
		err <- e
	}()
	must(t, <-err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// veth joins the host with another namespace.
func (w *world) veth(name, here string, there netns.NsHandle, address string) {
	w.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(w.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}))
	l, err := netlink.LinkByName(name)
	must(w.t, err)
	w.t.Cleanup(func() { netlink.LinkDel(l) }) // its namespace's end would take it, in time
	peer, err := netlink.LinkByName(name + "p")
	must(w.t, err)
	must(w.t, netlink.LinkSetNsFd(peer, int(there)))
	must(w.t, up(l, here+"/24"))
	must(w.t, networktest.In(there, func() error {
		peer, err := netlink.LinkByName(name + "p")
		if err != nil {
			return err
		}
		return up(peer, address+"/24")
	}))
}

func up(l netlink.Link, cidr string) error {
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
}

// serve answers each HTTP request in a namespace with what it is and who asked.
func (w *world) serve(ns netns.NsHandle, address, says string) {
	w.t.Helper()
	var ln net.Listener
	must(w.t, networktest.In(ns, func() (err error) {
		ln, err = net.Listen("tcp4", address)
		return err
	}))
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(rw, "%s to %s", says, host)
	})}
	go srv.Serve(ln)
	w.t.Cleanup(func() { srv.Close() })
}

// patience is how long something may take that is to work, on a busy machine.
const patience = 5 * time.Second

// refusal is how long is waited for something that is not to work.
const refusal = 700 * time.Millisecond

// ask gets a web page from within a namespace; empty if there is no answer in time.
func ask(ns netns.NsHandle, address string, limit time.Duration) string {
	return askBy(net.Dialer{Timeout: limit}, ns, address)
}

func askBy(dialer net.Dialer, ns netns.NsHandle, address string) (answer string) {
	_ = networktest.In(ns, func() error {
		conn, err := dialer.Dial("tcp4", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(dialer.Timeout))
		fmt.Fprintf(conn, "GET / HTTP/1.0\r\n\r\n")
		b, err := io.ReadAll(conn)
		_, answer, _ = strings.Cut(string(b), "\r\n\r\n")
		return err
	})
	return answer
}

func (w *world) reaches(from netns.NsHandle, address, want string) {
	w.t.Helper()
	if got := ask(from, address, patience); got != want {
		w.t.Errorf("from %s came %q, want %q", address, got, want)
	}
}

func (w *world) blocked(from netns.NsHandle, address string) {
	w.t.Helper()
	if got := ask(from, address, refusal); got != "" {
		w.t.Errorf("%s was reached: %q", address, got)
	}
}

// guest is a VM as the bridge sees it: a namespace whose only interface is at the other end
// of the TAP, as a VMM would have it.
type guest struct {
	Port
	ns  netns.NsHandle
	tap *os.File // what a VMM has
}

var nextGuest = 0

func (w *world) port() Port {
	nextGuest++
	id := fmt.Sprintf("%012x", nextGuest)
	a, err := Allocate(w.subnet, id, func(a netip.Addr) bool {
		return slices.ContainsFunc(w.bridge.config().Ports, func(p Port) bool { return p.Address.Addr() == a })
	})
	must(w.t, err)
	return Port{VM: id, MAC: fmt.Sprintf("02:00:00:00:%02x:%02x", nextGuest>>8, nextGuest&0xff), Address: a}
}

func (w *world) guest(change ...func(*Port)) *guest {
	w.t.Helper()
	p := w.port()
	for _, c := range change {
		c(&p)
	}
	f, err := w.bridge.Attach(w.t.Context(), p)
	must(w.t, err)
	g := &guest{Port: p, ns: namespace(w.t), tap: duplicate(w.t, f)}
	var inner *os.File
	must(w.t, networktest.In(g.ns, func() (err error) {
		if inner, err = openTAP("eth0"); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		mac, err := net.ParseMAC(p.MAC)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(l, mac); err != nil {
			return err
		}
		if err := up(l, p.Address.String()); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: Gateway(w.subnet).AsSlice()})
	}))
	pump := func(dst, src *os.File) {
		frame := make([]byte, 70<<10)
		for {
			n, err := src.Read(frame)
			if err != nil {
				return
			}
			dst.Write(frame[:n])
		}
	}
	go pump(inner, g.tap)
	go pump(g.tap, inner)
	w.t.Cleanup(func() {
		g.tap.Close()
		inner.Close()
	})
	w.serve(g.ns, ":80", "guest "+p.VM)
	return g
}

func duplicate(t *testing.T, f *os.File) *os.File {
	t.Helper()
	raw, err := f.SyscallConn()
	must(t, err)
	var fd int
	must(t, errors.Join(raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }), err))
	return os.NewFile(uintptr(fd), f.Name())
}

func (g *guest) web() string { return g.Address.Addr().String() + ":80" }

// eventually waits until what the kernel or a goroutine does has been done.
func eventually(t *testing.T, what string, limit time.Duration, happened func() bool) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !happened() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("did not happen within %v: %s", limit, what)
		}
	}
}
