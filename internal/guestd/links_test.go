package guestd

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"banger/internal/guest/proto"
)

// What was set before, by the agent or by a program of the image's, makes way.
func TestSetLinks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: network namespaces take root")
	}
	runtime.LockOSThread() // for good: this thread is of another namespace
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "eth0", net.HardwareAddr{2, 0, 0, 0, 0, 7}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
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
