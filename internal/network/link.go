package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// DefaultBridge is the name of the bridge where no other is asked for.
const DefaultBridge = "banger0"

// findBridge returns our bridge, if it is there, and the name that it has or is to have.
// Where want is empty it is the first banger0, banger1… that is nobody else's.
func findBridge(owner, want string) (name string, bridge netlink.Link, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return "", nil, fmt.Errorf("list interfaces: %w", err)
	}
	taken := map[string]bool{}
	for _, l := range links {
		if l.Type() == "bridge" && l.Attrs().Alias == owner {
			return l.Attrs().Name, l, nil
		}
		taken[l.Attrs().Name] = true
	}
	if want != "" {
		if taken[want] {
			return "", nil, errs.New(errs.Conflict, "the interface %s is not banger's, so it can't be its bridge", want).
				Try("choose another name: bridge = \"…\" in the config file")
		}
		return want, nil, nil
	}
	for i := 0; ; i++ {
		if name = fmt.Sprintf("%s%d", DefaultBridge[:len(DefaultBridge)-1], i); !taken[name] {
			return name, nil, nil
		}
	}
}

// CheckBridgeName refuses what can't be the name of an interface. errs.Invalid.
func CheckBridgeName(name string) error {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
	}
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || name == "all" || name == "default" || name == "lo" ||
		VMOf(name) != "" || slices.ContainsFunc([]rune(name), func(r rune) bool { return !plain(r) }) {
		return errs.New(errs.Invalid, "%q can't be the name of a bridge", name).Try("use up to %d letters and digits, as in %s", unix.IFNAMSIZ-1, DefaultBridge)
	}
	return nil
}

// ensureBridge makes the bridge what it should be: up, with the gateway's address alone.
func ensureBridge(owner, name string, have netlink.Link, subnet netip.Prefix) (netlink.Link, error) {
	if have == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		attrs.HardwareAddr = bridgeMAC(owner) // else it changes as TAPs come and go
		snooping := false                     // there are few to flood, and nobody asks them
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return nil, fmt.Errorf("make the bridge %s: %w", name, err)
		}
		var err error
		if have, err = netlink.LinkByName(name); err != nil {
			return nil, fmt.Errorf("find the bridge %s: %w", name, err)
		}
		if err := netlink.LinkSetAlias(have, owner); err != nil {
			return nil, errors.Join(fmt.Errorf("mark the bridge %s: %w", name, err), netlink.LinkDel(have))
		}
	}
	if err := noIPv6(name); err != nil {
		return nil, err
	}
	if err := onlyAddress(have, netip.PrefixFrom(Gateway(subnet), subnet.Bits())); err != nil {
		return nil, fmt.Errorf("give the bridge %s its address: %w", name, err)
	}
	if have.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(have); err != nil {
			return nil, fmt.Errorf("bring up the bridge %s: %w", name, err)
		}
	}
	return have, nil
}

// bridgeMAC derives the bridge's hardware address from its owner.
func bridgeMAC(owner string) net.HardwareAddr {
	d := digest(owner)
	mac, err := net.ParseMAC("02:" + d[0:2] + ":" + d[2:4] + ":" + d[4:6] + ":" + d[6:8] + ":" + d[8:10])
	if err != nil {
		panic(err) // hex digits
	}
	return mac
}

func onlyAddress(l netlink.Link, want netip.Prefix) error {
	have, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	found := false
	for _, a := range have {
		if prefixOf(a.IPNet) == want {
			found = true
		} else if err := netlink.AddrDel(l, &a); err != nil {
			return err
		}
	}
	if found {
		return nil
	}
	// Without a route for it, for that is what the address's prefix makes.
	return netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(want)})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf is the reverse, with the bits of the host kept; the zero prefix if it is no IPv4.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if a = a.Unmap(); !ok || !a.Is4() || bits == 0 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, ones-bits+32)
}

// openTAP makes a VM's TAP, which lives for as long as anyone has it open, this process or
// the VMM, and needs no removal that a crash could forget; or it opens one that stays.
func openTAP(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "/dev/net/tun can't be opened").Because(err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		// With a header in front of each frame that says what is left for the card to do.
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make the TAP %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// persist has a TAP stay when nobody has it open any more. One without an owner any user of the
// host's could open then, and be the guest.
func persist(tap *os.File, owner int) error {
	conn, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	var done error
	err = conn.Control(func(fd uintptr) {
		if done = unix.IoctlSetInt(int(fd), unix.TUNSETOWNER, owner); done == nil {
			done = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1)
		}
	})
	if err != nil {
		return err
	}
	if done != nil {
		return fmt.Errorf("have the TAP %s stay: %w", tap.Name(), done)
	}
	return nil
}

// plug puts a TAP on the bridge. What is said to whom is settled here and not learned: a
// guest can't draw another's frames to itself, nor are those of a guest that is gone
// spread among the others.
func plug(owner string, group uint32, bridge netlink.Link, p Port) error {
	name := TAP(p.VM)
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		return err
	}
	tap, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := noIPv6(name); err != nil {
		return err
	}
	index := tap.Attrs().Index
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"mark it", func() error { return netlink.LinkSetAlias(tap, owner) }},
		{"have it filtered", func() error { return netlink.LinkSetGroup(tap, int(group)) }},
		{"put it on the bridge", func() error { return netlink.LinkSetMaster(tap, bridge) }},
		{"stop it learning", func() error { return netlink.LinkSetLearning(tap, false) }},
		{"stop it flooding", func() error { return netlink.LinkSetFlood(tap, false) }},
		{"tell the bridge who is there", func() error {
			return netlink.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP, HardwareAddr: mac})
		}},
		{"bring it up", func() error { return netlink.LinkSetUp(tap) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("TAP %s: %s: %w", name, step.what, err)
		}
	}
	return nil
}

// ensureNeighbours has the host know the hardware address of each guest, and of no other on
// the bridge: a guest that takes over an address is reached at once.
func ensureNeighbours(bridge netlink.Link, ports []Port) error {
	index := bridge.Attrs().Index
	have, err := netlink.NeighList(index, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	known := map[netip.Addr]string{}
	for _, n := range have {
		a, _ := netip.AddrFromSlice(n.IP)
		if n.State&netlink.NUD_PERMANENT != 0 {
			known[a.Unmap()] = n.HardwareAddr.String()
		}
	}
	for _, p := range ports {
		a := p.Address.Addr()
		mac, err := net.ParseMAC(p.MAC)
		if err != nil {
			return err
		}
		if known[a] != mac.String() {
			n := netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
			if err := netlink.NeighSet(&n); err != nil {
				return fmt.Errorf("set neighbour %s: %w", a, err)
			}
		}
		delete(known, a)
	}
	for a := range known {
		n := netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V4, IP: a.AsSlice()}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget neighbour %s: %w", a, err)
		}
	}
	return nil
}

// removeLink deletes an interface that bears our mark. Finding none is success.
func removeLink(owner, name string) error {
	l, err := netlink.LinkByName(name)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the interface %s: %w", name, err)
	}
	if l.Attrs().Alias != owner {
		return errs.New(errs.Conflict, "the interface %s is not banger's", name)
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the interface %s: %w", name, err)
	}
	return nil
}

// ownLinks lists the interfaces that bear our mark.
func ownLinks(owner string) (names []string, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if l.Attrs().Alias == owner {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// UsedByHost lists the networks that the host has routes to, in any table, and its own
// addresses, but for those of the interface named.
func UsedByHost(but string) ([]Used, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var used []Used
	add := func(n *net.IPNet, index int, what string) {
		if p := prefixOf(n); p.IsValid() && (but == "" || names[index] != but) {
			used = append(used, Used{p.Masked(), fmt.Sprintf("%s %s of %s", what, p, names[index])})
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		add(a.IPNet, a.LinkIndex, "the address")
		if a.Peer != nil {
			add(a.Peer, a.LinkIndex, "the peer")
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Type == unix.RTN_MULTICAST || r.Type == unix.RTN_BROADCAST || r.Type == unix.RTN_LOCAL {
			continue
		}
		add(r.Dst, r.LinkIndex, "the route")
		for _, hop := range r.MultiPath {
			add(r.Dst, hop.LinkIndex, "the route")
		}
	}
	return used, nil
}

// sameRules tells whether two lists of elements have the same keys, in any order.
func sameKeys(a []Element, keys [][]byte) bool {
	if len(a) != len(keys) {
		return false
	}
	for _, e := range a {
		if !slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, e.Key) }) {
			return false
		}
	}
	return true
}
