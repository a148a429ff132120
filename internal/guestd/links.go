package guestd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/guest/proto"
)

// SetLinks brings loopback and the given interfaces up with exactly the given global
// addresses, waiting for interfaces that have not appeared yet.
func (l *Linux) SetLinks(ctx context.Context, links []proto.Link) error {
	if bare := l.bare; bare != nil { // a clone's, which are up
		l.bare = nil
		if relink(bare, links) == nil {
			return nil
		}
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if len(links) == 0 {
		return nil
	}
	found, err := awaitLinks(ctx, links)
	if err != nil {
		return err
	}
	for i, want := range links {
		if err := setLink(found[i], want); err != nil {
			return fmt.Errorf("interface %s: %w", want.MAC, err)
		}
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// awaitLinks returns the interfaces in the order of links.
func awaitLinks(ctx context.Context, links []proto.Link) ([]netlink.Link, error) {
	found, missing, err := findLinks(links)
	if err != nil || missing == "" {
		return found, err // as a rule: their driver is loaded before the agent starts
	}
	updates := make(chan netlink.LinkUpdate, 16)
	stop := make(chan struct{})
	defer close(stop)
	if err := netlink.LinkSubscribe(updates, stop); err != nil {
		return nil, fmt.Errorf("watch for interfaces: %w", err)
	}
	for {
		found, missing, err := findLinks(links)
		if err != nil || missing == "" {
			return found, err
		}
		select {
		case _, ok := <-updates:
			if !ok {
				return nil, errors.New("watch for interfaces: the kernel closed the socket")
			}
		case <-ctx.Done():
			return nil, errs.New(errs.Unavailable, "the guest has no network interface %s", missing)
		}
	}
}

func findLinks(links []proto.Link) (found []netlink.Link, missing string, err error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, "", fmt.Errorf("list interfaces: %w", err)
	}
	for _, want := range links {
		var match netlink.Link
		for _, mac := range []string{want.MAC, want.OldMAC} {
			i := slices.IndexFunc(all, func(l netlink.Link) bool {
				return mac != "" && strings.EqualFold(l.Attrs().HardwareAddr.String(), mac)
			})
			if i >= 0 {
				match = all[i]
				break
			}
		}
		if match == nil {
			return nil, want.MAC, nil
		}
		found = append(found, match)
	}
	return found, "", nil
}

func setLink(link netlink.Link, want proto.Link) error {
	if err := setMAC(link, want.MAC); err != nil {
		return fmt.Errorf("set its address: %w", err)
	}
	if want.MTU > 0 && link.Attrs().MTU != want.MTU {
		if err := netlink.LinkSetMTU(link, want.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", want.MTU, err)
		}
	}
	if err := setAddresses(link, want.Addresses); err != nil {
		return err
	}
	// Neighbours that remember who had the address before are told. Nothing is lost without.
	_ = os.WriteFile("/proc/sys/net/ipv4/conf/"+link.Attrs().Name+"/arp_notify", []byte("1"), 0)
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	if want.Gateway == "" {
		return nil
	}
	gw := net.ParseIP(want.Gateway)
	if gw == nil {
		return errs.New(errs.Invalid, "gateway %q is no address", want.Gateway)
	}
	return setRoute(link, gw, link.Attrs().Flags&net.FlagUp != 0)
}

// setRoute has the gateway be the only way out by a link, by which there may be others if it was
// up before.
func setRoute(link netlink.Link, gw net.IP, others bool) error {
	// On-link: the gateway need not be within an address's prefix. Static, so that it is the
	// very route that networkd finds in networkdConf.
	route := netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw, Flags: int(netlink.FLAG_ONLINK), Dst: defaultRoute(gw), Protocol: unix.RTPROT_STATIC}
	if err := netlink.RouteReplace(&route); err != nil {
		return fmt.Errorf("route by %s: %w", gw, err)
	}
	if !others {
		return nil
	}
	family := netlink.FAMILY_V6
	if gw.To4() != nil {
		family = netlink.FAMILY_V4
	}
	have, err := netlink.RouteList(link, family)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range have {
		if isDefault(r.Dst) && r.Gw != nil && !r.Gw.Equal(gw) {
			if err := netlink.RouteDel(&r); err != nil {
				return fmt.Errorf("remove the route by %s: %w", r.Gw, err)
			}
		}
	}
	return nil
}

// isDefault tells whether a destination is every other: the kernel may leave it out.
func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0
}

// setMAC gives a clone's interface the address that its host knows it by. Down in between, it
// loses what was derived from the old one: routes, neighbours and its IPv6 link address.
func setMAC(link netlink.Link, mac string) error {
	if strings.EqualFold(link.Attrs().HardwareAddr.String(), mac) {
		return nil
	}
	addr, err := net.ParseMAC(mac)
	if err != nil {
		return errs.New(errs.Invalid, "%q is no hardware address", mac)
	}
	if link.Attrs().Flags&net.FlagUp != 0 {
		if err := netlink.LinkSetDown(link); err != nil {
			return err
		}
	}
	return netlink.LinkSetHardwareAddr(link, addr)
}

func defaultRoute(gw net.IP) *net.IPNet {
	if gw.To4() != nil {
		return &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

// setAddresses removes what another configure left and adds what is missing, in that order: with
// the first address of a subnet the kernel removes all others of it.
func setAddresses(link netlink.Link, cidrs []string) error {
	want := map[string]bool{}
	var add []*netlink.Addr
	for _, cidr := range cidrs {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return errs.New(errs.Invalid, "address %q", cidr).Because(err)
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD // nobody else is on this link: usable at once
		}
		want[addr.IPNet.String()] = true
		add = append(add, addr)
	}
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, addr := range have {
		if addr.IP.IsGlobalUnicast() && !want[addr.IPNet.String()] {
			err := netlink.AddrDel(link, &addr)
			if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) { // gone with one before it
				return fmt.Errorf("remove address %s: %w", addr.IPNet, err)
			}
		}
	}
	for _, addr := range add {
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", addr.IPNet, err)
		}
	}
	return nil
}
