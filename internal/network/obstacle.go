package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// Obstacle is something of the host's that may keep guests' packets back.
type Obstacle struct {
	What string
	Hint string
}

// Obstacles looks at the packet filters of others. An accept of ours does not overrule what
// their base chains drop, so those are named here: what is listed may be in the way, and
// whether it is the paths show.
func Obstacles(s Status) []Obstacle {
	all := oldTables(s.Bridge, "/proc/thread-self/net/ip_tables_names")
	conn, err := nftables.New()
	if err != nil {
		return all
	}
	chains, err := conn.ListChains()
	if err != nil {
		return all
	}
	docker, _ := dockerUser(conn) // an error shows in the list of chains
	zone, _, _ := zoneInFirewalld(s.Bridge)
	for _, c := range chains {
		if c.Hooknum == nil || strings.HasPrefix(c.Table.Name, "banger_") || !carriesIPv4(c.Table.Family) {
			continue
		}
		forward := *c.Hooknum == *nftables.ChainHookForward
		if !forward && *c.Hooknum != *nftables.ChainHookInput {
			continue
		}
		if forward && docker != nil && c.Table.Family == docker.Table.Family && c.Table.Name == docker.Table.Name {
			continue // where our rules are
		}
		if zone != "" && c.Table.Name == firewalldTable {
			continue // which lets the bridge by, or does as someone chose
		}
		why := ""
		if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			why = "drops what it does not know"
		} else if drops(conn, c) {
			why = "has rules that drop or reject"
		}
		if why != "" {
			all = append(all, obstacle(s.Bridge, c, forward, why))
		}
	}
	return all
}

// oldTables tells of rules of the old iptables, which netlink does not show. The kernel lists
// its tables that are in use in this network namespace.
func oldTables(bridge, list string) []Obstacle {
	names, err := os.ReadFile(list)
	if err != nil || !slices.Contains(strings.Fields(string(names)), "filter") {
		return nil
	}
	return []Obstacle{{"the old iptables (iptables-legacy) is in use, whose rules can't be seen from here",
		fmt.Sprintf("if VMs don't get by, let them: iptables-legacy -I FORWARD -i %s -j ACCEPT; iptables-legacy -I FORWARD -o %s -j ACCEPT; iptables-legacy -I INPUT -i %s -j ACCEPT", bridge, bridge, bridge)}}
}

func carriesIPv4(f nftables.TableFamily) bool {
	return f == nftables.TableFamilyIPv4 || f == nftables.TableFamilyINet
}

// drops tells whether a base chain itself has a rule that ends packets.
func drops(conn *nftables.Conn, c *nftables.Chain) bool {
	rules, err := conn.GetRules(c.Table, c)
	if err != nil {
		return false
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case *expr.Verdict:
				if e.Kind == expr.VerdictDrop {
					return true
				}
			case *expr.Reject:
				return true
			}
		}
	}
	return false
}

func obstacle(bridge string, c *nftables.Chain, forward bool, why string) Obstacle {
	family := "ip"
	if c.Table.Family == nftables.TableFamilyINet {
		family = "inet"
	}
	what := fmt.Sprintf("the chain %s of the nftables table %s %s %s", c.Name, family, c.Table.Name, why)
	hint := fmt.Sprintf("if VMs don't get by, let them: nft insert rule %s %s %s iifname %s accept", family, c.Table.Name, c.Name, bridge)
	if forward {
		hint += fmt.Sprintf("; nft insert rule %s %s %s oifname %s accept", family, c.Table.Name, c.Name, bridge)
	}
	switch {
	case c.Table.Name == firewalldTable:
		hint = fmt.Sprintf("if VMs don't get by, let them: firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload", bridge)
	case c.Table.Name == "filter" && c.Table.Family == nftables.TableFamilyIPv4:
		hint = fmt.Sprintf("if VMs don't get by, let them: iptables -I %s -i %s -j ACCEPT", c.Name, bridge)
		if forward {
			hint += fmt.Sprintf("; iptables -I %s -o %s -j ACCEPT", c.Name, bridge)
		}
	}
	return Obstacle{what, hint}
}

// Reach connects to an address. A refusal is an answer, too.
func Reach(ctx context.Context, to netip.AddrPort) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp4", to.String())
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return err
	}
	return conn.Close()
}

// HostGateway is where the host's default route leads. errs.Unavailable if there is none.
func HostGateway() (netip.Addr, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || prefixOf(r.Dst).Bits() == 0 {
			if a, ok := netip.AddrFromSlice(r.Gw); ok {
				return a.Unmap(), nil
			}
		}
	}
	return netip.Addr{}, errs.New(errs.Unavailable, "this host has no default route, so neither it nor a VM gets beyond its own networks")
}
