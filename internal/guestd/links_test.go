package guestd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"banger/internal/guest/proto"
)

// withEth0 has the test be in a network namespace of its own with an eth0, 02:00:00:00:00:07.
func withEth0(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: network namespaces take root")
	}
	runtime.LockOSThread() // for good: this thread is of another namespace
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "eth0", net.HardwareAddr{2, 0, 0, 0, 0, 7}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
}

// A machine that is saved keeps nothing of its addresses but that of its hardware, and its interface
// stays up; a clone has its own, however it gets them.
func TestAClonesLinks(t *testing.T) {
	withEth0(t)
	system := NewLinux()
	eth0 := func() netlink.Link {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	origin := proto.Link{MAC: "02:00:00:00:00:07", Addresses: []string{"10.1.0.5/22", "fd00::5/64"}, Gateway: "10.1.0.1"}
	for i, known := range []bool{true, false} {
		if err := system.SetLinks(t.Context(), []proto.Link{origin}); err != nil {
			t.Fatal(err)
		}
		second := netlink.Route{LinkIndex: eth0().Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(10, 8, 0, 0), Mask: net.CIDRMask(16, 32)}}
		neighbour := netlink.Neigh{LinkIndex: eth0().Attrs().Index, IP: net.IPv4(10, 1, 0, 1), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}, State: netlink.NUD_REACHABLE}
		ownIPv6 := netlink.Addr{IPNet: &net.IPNet{IP: linkLocalOf(eth0().Attrs().HardwareAddr), Mask: net.CIDRMask(64, 128)}}
		if err := errors.Join(netlink.RouteAdd(&second), netlink.NeighSet(&neighbour), netlink.AddrReplace(eth0(), &ownIPv6)); err != nil {
			t.Fatal(err)
		}
		bare, err := bareLinks()
		if err != nil {
			t.Fatal(err)
		}
		if got := allOf(t, eth0()); len(got) > 0 || eth0().Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("bare it has %q, with flags %v", got, eth0().Attrs().Flags)
		}
		if known {
			system.bare = bare
		}
		clone := proto.Link{MAC: fmt.Sprintf("02:00:00:00:01:0%d", i), OldMAC: origin.MAC, Addresses: []string{"10.1.0.9/22", "fd00::9/64"}, Gateway: "10.1.0.1", MTU: 1400}
		if err := system.SetLinks(t.Context(), []proto.Link{clone}); err != nil {
			t.Fatal(err)
		}
		want := []string{"10.1.0.9/22 10.1.3.255", "fd00::9/64 <nil>", "fe80::ff:fe00:100/64 <nil>", "0.0.0.0/0 by 10.1.0.1 proto 4", "10.1.0.0/22 proto 2"}
		if !known { // the kernel makes one when it sees a carrier, which a bridge alone has not
			want = slices.Delete(want, 2, 3)
		}
		if got := allOf(t, eth0()); !slices.Equal(got, want) {
			t.Errorf("a clone has %q, and should have %q", got, want)
		}
		if a := eth0().Attrs(); a.HardwareAddr.String() != clone.MAC || a.MTU != 1400 || system.bare != nil {
			t.Errorf("a clone is %v with MTU %d", a.HardwareAddr, a.MTU)
		}
		origin.MAC = clone.MAC
	}
}

// allOf lists the addresses, the IPv4 routes and the neighbours of an interface.
func allOf(t *testing.T, l netlink.Link) (all []string) {
	t.Helper()
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		all = append(all, fmt.Sprint(a.IPNet, " ", a.Broadcast))
	}
	routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		by := ""
		if r.Gw != nil {
			by = " by " + r.Gw.String()
		}
		all = append(all, fmt.Sprintf("%v%s proto %d", r.Dst, by, r.Protocol))
	}
	neighbours, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighbours {
		if n.State != netlink.NUD_NOARP { // of multicast
			all = append(all, n.IP.String())
		}
	}
	return all
}

// In a subnet that has no address for all, that of a clone, or of its only neighbour, is none.
func TestRelinkTinySubnets(t *testing.T) {
	withEth0(t)
	mac := "02:00:00:00:00:07"
	for _, address := range []string{"192.168.7.8/31", "192.168.7.9/32"} {
		bare, err := bareLinks()
		if err == nil {
			err = relink(bare, []proto.Link{{MAC: mac, OldMAC: mac, Addresses: []string{address}}})
		}
		if err != nil {
			t.Fatal(err)
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if got := allOf(t, eth0); !slices.Contains(got, address+" <nil>") {
			t.Errorf("with %s it has %q", address, got)
		}
	}
}

// What the kernel refuses is told.
func TestRelinkRefused(t *testing.T) {
	withEth0(t)
	links := []proto.Link{{MAC: "02:00:00:00:00:08", OldMAC: "02:00:00:00:00:07", Addresses: []string{"10.1.0.5/22"}}}
	if err := relink(map[string]bareLink{}, links); err == nil {
		t.Error("an interface that there was not")
	}
	if err := relink(map[string]bareLink{"02:00:00:00:00:07": {index: 1234}}, links); !errors.Is(err, unix.ENODEV) {
		t.Errorf("an interface that is gone: %v", err)
	}
}

// What was set before, by the agent or by a program of the image's, makes way.
func TestSetLinks(t *testing.T) {
	withEth0(t)
	system := NewLinux()
	for _, want := range []struct{ address, gateway string }{
		{"10.1.0.5/22", "10.1.0.1"}, {"10.1.0.5/22", "10.1.0.1"}, {"10.9.0.5/24", "10.9.0.1"}, {"192.168.7.9/32", "192.168.1.1"},
	} {
		if err := system.SetLinks(t.Context(), []proto.Link{{MAC: "02:00:00:00:00:07", Addresses: []string{want.address}, Gateway: want.gateway}}); err != nil {
			t.Fatal(err)
		}
		if got := addressesAndWays(t); !slices.Equal(got, []string{want.address, want.gateway}) {
			t.Errorf("it has %q, and should have %v", got, want)
		}
		// A program of the image has one of its own; the next configure removes it.
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if want.address == "10.1.0.5/22" {
			second := netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("10.1.0.2"), Dst: defaultRoute(net.IPv4zero)}
			if err := netlink.RouteAppend(&second); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := system.SetLinks(t.Context(), []proto.Link{{MAC: "02:00:00:00:00:07", Addresses: []string{"10.1.0.5/22"}, Gateway: "nonsense"}}); err == nil {
		t.Error("a gateway that is no address")
	}
}

// addressesAndWays lists the IPv4 addresses of eth0 and the gateways of its default routes.
func addressesAndWays(t *testing.T) (all []string) {
	t.Helper()
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		all = append(all, a.IPNet.String())
	}
	routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if isDefault(r.Dst) {
			all = append(all, fmt.Sprint(r.Gw))
		}
	}
	return all
}
