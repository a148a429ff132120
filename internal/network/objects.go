package network

import (
	"fmt"
	"strings"

	"github.com/google/nftables"

	"banger/internal/host"
)

// Objects lists what exists on the host of ours: interfaces, nftables tables, rules in
// Docker's chain, and forwarding that we have switched on. A TAP is tied to its VM, the
// rest to none. Addresses, routes and neighbours are the bridge's and go with it. What
// Detach has left to do is done first.
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
