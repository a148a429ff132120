package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// kernel is where a configuration is made true: the network namespace of this process.
type kernel struct {
	owner  string // mark of our interfaces
	group  uint32 // of our TAPs
	opened opened
}

// apply makes the host what the configuration says, whatever it was before, but for the
// TAPs themselves, which come and go with whoever has them open. Was is the ruleset that
// apply installed last, or nil if that may not be there; it returns the one it installed. That packets can't be forwarded is told apart and stops nothing: guests still
// reach each other and the host.
func (k kernel) apply(c Config, was Ruleset) (rules Ruleset, forwarding, err error) {
	if len(c.Ports) == 0 {
		return nil, nil, k.clear(c)
	}
	names, forwarding := k.opened.plan(c.Bridge)
	rules = Rules(c, names)
	// First, so that nothing is on the bridge before it is filtered.
	if err := install(was, rules); err != nil {
		return nil, forwarding, err
	}
	_, have, err := findBridge(k.owner, c.Bridge)
	if err != nil {
		return rules, forwarding, err
	}
	bridge, err := ensureBridge(k.owner, c.Bridge, have, c.Subnet())
	if err != nil {
		return rules, forwarding, err
	}
	if err := ensureNeighbours(bridge, c.Ports); err != nil {
		return rules, forwarding, err
	}
	forwarding = errors.Join(forwarding, k.opened.set(names, c.Bridge), allowInDocker(c), allowInFirewalld(c.Bridge))
	return rules, forwarding, k.unplug(c)
}

// clear takes away all that apply made.
func (k kernel) clear(c Config) error {
	err := k.unplug(c)
	err = errors.Join(err, disallowInDocker(c.Table), disallowInFirewalld(c.Bridge), uninstall(c.Table), k.opened.close())
	names, listErr := ownLinks(k.owner)
	err = errors.Join(err, listErr)
	for _, name := range names {
		err = errors.Join(err, removeLink(k.owner, name))
	}
	return err
}

// unplug removes TAPs of ours that no port accounts for. One whose VMM still runs has lost
// its row, and is not to be heard.
func (k kernel) unplug(c Config) error {
	names, err := ownLinks(k.owner)
	if err != nil {
		return err
	}
	wanted := map[string]bool{c.Bridge: true}
	for _, p := range c.Ports {
		wanted[TAP(p.VM)] = true
	}
	for _, name := range names {
		if VMOf(name) != "" && !wanted[name] {
			err = errors.Join(err, removeLink(k.owner, name))
		}
	}
	return err
}

// connect makes a port's TAP and puts it on the bridge, which is there. One that is opened
// by name stays without anyone who has it open, until unplug: nil is returned for it.
func (k kernel) connect(bridge string, p Port) (_ *os.File, err error) {
	l, err := netlink.LinkByName(bridge)
	if err != nil {
		return nil, fmt.Errorf("find the bridge %s: %w", bridge, err)
	}
	f, err := openTAP(TAP(p.VM))
	if err != nil {
		return nil, err
	}
	if err := plug(k.owner, k.group, l, p); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if p.ByName {
		// Marked as ours by now, so that it is found again whatever happens.
		return nil, errors.Join(persist(f, p.Owner), f.Close())
	}
	return f, nil
}

// bridged tells whether the bridge still is up, with its address.
func (k kernel) bridged(c Config) (bool, error) {
	_, bridge, err := findBridge(k.owner, c.Bridge)
	if err != nil || bridge == nil || bridge.Attrs().Flags&net.FlagUp == 0 {
		return false, err
	}
	addrs, err := netlink.AddrList(bridge, netlink.FAMILY_V4)
	if err != nil {
		return false, fmt.Errorf("list addresses: %w", err)
	}
	subnet := c.Subnet()
	return len(addrs) == 1 && prefixOf(addrs[0].IPNet) == netip.PrefixFrom(Gateway(subnet), subnet.Bits()), nil
}

// forwarding tells whether packets are forwarded wherever guests need it.
func (k kernel) forwarding(c Config) (bool, error) {
	names, err := uplinks(c.Bridge)
	if err != nil {
		return false, err
	}
	for _, name := range append(names, c.Bridge) {
		if on, err := forwards(name); err == nil && !on {
			return false, nil
		}
	}
	if allowed, err := allowedInDocker(c); err != nil || !allowed {
		return false, err
	}
	zone, asked, err := zoneInFirewalld(c.Bridge)
	return !asked || zone != "", err
}
