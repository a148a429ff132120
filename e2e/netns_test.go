package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"banger/internal/network/networktest"
)

// inside marks the process in which the tests run, in a network namespace of its own: so do
// their daemons and machines, and no interface of the real host is ever touched. Who is
// not root has none and needs none: their VMs are never bridged.
const inside = "BANGER_E2E_NETNS"

func outside(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := c.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		fmt.Fprintf(os.Stderr, "no network namespace for tests: %v\n", err)
		return 1
	}
	return c.ProcessState.ExitCode()
}

// The world around the tests' host: a LAN with a web server, which is its gateway too.
const (
	hostOnLAN = "198.51.100.1"
	webServer = "198.51.100.2"
)

var lan netns.NsHandle

func runInside(m *testing.M) int {
	if err := makeLAN(); err != nil {
		fmt.Fprintf(os.Stderr, "no LAN for tests: %v\n", err)
		return 1
	}
	return m.Run()
}

func makeLAN() (err error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if lan, err = newNamespace(); err != nil {
		return err
	}
	if err := joinNamespace("lan0", hostOnLAN, lan, webServer); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(webServer)}); err != nil {
		return err
	}
	return serveIn(lan, webServer+":80")
}

func newNamespace() (ns netns.NsHandle, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: this thread is of another world
		ns, err = netns.New()
	}()
	<-done
	return ns, err
}

// joinNamespace connects this namespace with another by an interface.
func joinNamespace(name, here string, ns netns.NsHandle, there string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}); err != nil {
		return err
	}
	peer, err := netlink.LinkByName(name + "p")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(peer, int(ns)); err != nil {
		return err
	}
	if err := linkUp(name, here); err != nil {
		return err
	}
	return networktest.In(ns, func() error { return linkUp(name+"p", there) })
}

func linkUp(name, address string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(address + "/24")
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
}

// serveIn tells each who asks who that was.
func serveIn(ns netns.NsHandle, address string) error {
	return networktest.In(ns, func() error {
		ln, err := net.Listen("tcp4", address)
		if err != nil {
			return err
		}
		go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			io.WriteString(w, "hello "+host)
		}))
		return nil
	})
}

// networkLeft lists what is on the tests' host and was not at their beginning.
func networkLeft() (left []string) {
	if os.Getenv(inside) == "" {
		return nil
	}
	links, err := netlink.LinkList()
	if err != nil {
		return []string{err.Error()}
	}
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, "banger") || strings.HasPrefix(name, "bgr") {
			left = append(left, "interface "+name)
		}
	}
	conn, err := nftables.New()
	if err != nil {
		return append(left, err.Error())
	}
	tables, err := conn.ListTables()
	if err != nil {
		return append(left, err.Error())
	}
	for _, t := range tables {
		if strings.HasPrefix(t.Name, "banger") {
			left = append(left, "table "+t.Name)
		}
	}
	for _, name := range []string{"all", "lan0"} {
		if b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + name + "/forwarding"); err != nil || string(b) != "0\n" {
			left = append(left, fmt.Sprintf("forwarding of %s: %q, %v", name, b, err))
		}
	}
	return left
}
