package network

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// Objects lists what exists on the host of ours: interfaces, with the addresses and routes
// of the bridge, nftables tables, rules in Docker's chain, and forwarding that we have
// switched on. A TAP is tied to its VM, the rest to none. What Detach has left to do is done
// first.
func (b *Bridge) Objects() ([]host.Object, error) {
	if !root() {
		return nil, nil // who may not make any has none
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settleNow()
	var found []host.Object
	links, err := ownLinks(b.kernel.owner)
	if err != nil {
		return nil, err
	}
	for _, name := range links {
		found = append(found, host.Object{Kind: "link", Name: name, Path: VMOf(name)})
		if VMOf(name) == "" {
			reached, err := reachObjects(name)
			if err != nil {
				return nil, err
			}
			found = append(found, reached...)
		}
	}
	rules, err := ruleObjects(tableName(b.State))
	if err != nil {
		return nil, err
	}
	found = append(found, rules...)
	opened, err := b.kernel.opened.list()
	if err != nil {
		return nil, err
	}
	for _, name := range opened {
		if on, err := forwards(name); err == nil && on {
			found = append(found, host.Object{Kind: "sysctl", Name: fmt.Sprintf("net.ipv4.conf.%s.forwarding", name)})
		}
	}
	return found, nil
}

// reachObjects lists the addresses that an interface has and the routes by it, but for those
// to the host itself, which are the addresses again.
func reachObjects(name string) (found []host.Object, err error) {
	l, err := netlink.LinkByName(name)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil, nil // meanwhile
	}
	if err != nil {
		return nil, fmt.Errorf("find the interface %s: %w", name, err)
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		found = append(found, host.Object{Kind: "address", Name: a.IPNet.String() + " of " + name})
	}
	by := &netlink.Route{LinkIndex: l.Attrs().Index, Table: unix.RT_TABLE_UNSPEC}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, by, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Table != unix.RT_TABLE_LOCAL && r.Dst != nil {
			found = append(found, host.Object{Kind: "route", Name: r.Dst.String() + " by " + name})
		}
	}
	return found, nil
}

func ruleObjects(table string) (found []host.Object, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("reach nftables: %w", err)
	}
	tables, err := ownTables(conn, table)
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		found = append(found, host.Object{Kind: "nft", Name: "table " + familyName(t.Family) + " " + t.Name})
	}
	chain, err := dockerUser(conn)
	if err != nil || chain == nil {
		return found, err
	}
	rules, err := conn.GetRules(chain.Table, chain)
	if err != nil {
		return nil, fmt.Errorf("list Docker's rules: %w", err)
	}
	for _, r := range rules {
		if says := commentOf(r); strings.HasPrefix(says, table+": ") {
			found = append(found, host.Object{Kind: "nft", Name: "rule in " + dockerChain + ": " + says})
		}
	}
	return found, nil
}
