package network

import (
	"net/netip"
	"slices"
	"testing"
)

func TestRulesAreAValue(t *testing.T) {
	port := func(vm, address string) Port {
		return Port{VM: vm, MAC: "02:00:00:00:00:0" + vm[11:], Address: netip.MustParsePrefix(address)}
	}
	a, b := port("000000000001", "10.1.0.2/24"), port("000000000002", "10.1.0.9/24")
	b.Isolated, b.HostAccess = true, true
	c := Config{Bridge: "banger0", Table: "banger_ab", Group: 7, Ports: []Port{a, b}}
	const want = `table ip banger_ab {
	set opened { eth0, tun0 }
	set trusted { 10.1.0.9 }
	set isolated { 10.1.0.9 }
	chain input {
		iifname "banger0" ct state established,related accept
		iifname "banger0" ip saddr @trusted accept
		iifname "banger0" icmp type echo-request accept
		iifname "banger0" ip daddr 10.1.0.1 udp dport 53 accept
		iifname "banger0" ip daddr 10.1.0.1 tcp dport 53 accept
		iifname "banger0" drop
		ip daddr 10.1.0.1 ct state established,related accept
		iifname != "banger0" iifname != "lo" ip daddr 10.1.0.1 drop
	}
	chain forward {
		iifname "banger0" oifname "banger0" ip saddr @isolated drop
		iifname "banger0" oifname "banger0" ip daddr @isolated drop
		iifname "banger0" oifname "banger0" accept
		iifname "banger0" accept
		oifname "banger0" ct state established,related accept
		oifname "banger0" drop
		iifname @opened ct state established,related accept
		iifname @opened drop
	}
	chain postrouting {
		ip saddr 10.1.0.0/24 oifname != "banger0" oifname != "lo" masquerade
	}
}
table bridge banger_ab {
	set ports { bgr000000000001 . 02:00:00:00:00:01 . 10.1.0.2, bgr000000000002 . 02:00:00:00:00:02 . 10.1.0.9 }
	set isolated { bgr000000000002 }
	chain ingress {
		iifgroup != 0x7 accept
		ether type 0x0800 ip daddr 169.254.0.0/16 drop
		ether type 0x0800 iifname . ether saddr . ip saddr @ports accept
		ether type 0x0806 arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iifname . ether saddr . arp saddr ip @ports iifname . arp saddr ether . arp saddr ip @ports accept
		drop
	}
	chain forward {
		iifname @isolated drop
		oifname @isolated drop
	}
}
`
	if got := Rules(c, []string{"tun0", "eth0"}).String(); got != want {
		t.Errorf("got\n%s", got)
	}
	slices.Reverse(c.Ports)
	if got := Rules(c, []string{"eth0", "tun0"}).String(); got != want {
		t.Errorf("in another order it is\n%s", got)
	}
}

func TestEveryRuleSaysWhatItDoes(t *testing.T) {
	c := Config{Bridge: "b", Table: "t", Ports: []Port{{VM: "000000000001", Address: netip.MustParsePrefix("10.1.0.2/24")}}}
	for _, table := range Rules(c, nil) {
		seen := map[string]bool{}
		for _, chain := range table.Chains {
			for _, r := range chain.Rules {
				// The kernel keeps a comment of up to 128 bytes.
				if r.Says == "" || len(r.Says) > 120 || seen[r.Says] || len(r.exprs()) == 0 {
					t.Errorf("%s %s: %q", table.Name, chain.Name, r.Says)
				}
				seen[r.Says] = true
			}
		}
	}
}
