package network

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// Ruleset is what nftables is to do with the guests' packets. It is a value: the same
// configuration gives the same ruleset.
type Ruleset []Table

// Table is one table of nftables.
type Table struct {
	Family nftables.TableFamily
	Name   string
	Sets   []Set
	Chains []Chain
}

// Set is a named set with fixed elements.
type Set struct {
	Name     string
	Type     nftables.SetDatatype
	Concat   bool
	Elements []Element // in order
}

// Element is an element of a set: as nft writes it, and as the kernel has it.
type Element struct {
	Text string
	Key  []byte
}

// Chain is a base chain. Every one accepts what no rule of it drops.
type Chain struct {
	Name     string
	Type     nftables.ChainType
	Hook     *nftables.ChainHook
	Priority int
	Rules    []Rule
}

// Rule is one rule of a chain.
type Rule struct {
	Says    string // in words; kept with the rule as its comment
	Clauses []Clause
}

const (
	setPorts    = "ports"    // TAP, MAC and address that belong together
	setIsolated = "isolated" // TAPs, or addresses, of guests that no other guest reaches
	setTrusted  = "trusted"  // addresses of guests that may reach all of the host
	setOpened   = "opened"   // interfaces that forward only because we had them do so
)

// typePort is the type of the elements of setPorts.
var typePort = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr)

// Rules gives the ruleset for a configuration with at least one port. Opened are the
// interfaces whose forwarding we switched on, so that replies come in by them.
func Rules(c Config, opened []string) Ruleset {
	ports := slices.SortedFunc(slices.Values(c.Ports), func(a, b Port) int { return cmp.Compare(a.VM, b.VM) })
	return Ruleset{ipTable(c, ports, opened), bridgeTable(c, ports)}
}

// linkLocal is where clouds keep their secrets, and nothing that a guest needs.
var linkLocal = netip.MustParsePrefix("169.254.0.0/16")

// ipTable filters what guests say to the host and through it, and hides them behind it.
func ipTable(c Config, ports []Port, opened []string) Table {
	trusted := Set{Name: setTrusted, Type: nftables.TypeIPAddr}
	isolated := Set{Name: setIsolated, Type: nftables.TypeIPAddr}
	for _, p := range ports {
		if p.HostAccess {
			trusted.Elements = append(trusted.Elements, addrElement(p.Address.Addr()))
		}
		if p.Isolated {
			isolated.Elements = append(isolated.Elements, addrElement(p.Address.Addr()))
		}
	}
	open := Set{Name: setOpened, Type: nftables.TypeIFName}
	for _, name := range slices.Sorted(slices.Values(opened)) {
		open.Elements = append(open.Elements, nameElement(name))
	}
	in, out := inputInterface(c.Bridge, true), outputInterface(c.Bridge, true)
	gateway := Gateway(c.Subnet())
	return Table{
		Family: nftables.TableFamilyIPv4, Name: c.Table, Sets: []Set{open, trusted, isolated},
		Chains: []Chain{
			{Name: "input", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput, Rules: []Rule{
				{"guests may answer the host", []Clause{in, established(), accept()}},
				{"guests with host access reach all of the host", []Clause{in, sourceIn(setTrusted), accept()}},
				{"guests may ask the host for an echo", []Clause{in, echoRequest(), accept()}},
				{"guests may ask the host's DNS", []Clause{in, destination(gateway), port("udp", 53), accept()}},
				{"guests may ask the host's DNS by TCP", []Clause{in, destination(gateway), port("tcp", 53), accept()}},
				{"guests reach nothing else of the host", []Clause{in, drop()}},
				{"answers reach what the host has for guests", []Clause{destination(gateway), established(), accept()}},
				{"nobody else reaches what the host has for guests", []Clause{inputInterface(c.Bridge, false), inputInterface("lo", false), destination(gateway), drop()}},
			}},
			{Name: "forward", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Rules: []Rule{
				// What a guest sends to another by way of the host, and where br_netfilter is on
				// also what it sends directly.
				{"isolated guests reach no other by way of the host", []Clause{in, out, sourceIn(setIsolated), drop()}},
				{"nor does another reach them", []Clause{in, out, destinationIn(setIsolated), drop()}},
				{"guests reach each other", []Clause{in, out, accept()}},
				{"guests reach what the host reaches", []Clause{in, accept()}},
				{"answers reach guests", []Clause{out, established(), accept()}},
				{"nobody else reaches guests through the host", []Clause{out, drop()}},
				// Those of another banger's guests, too, which it lets by itself.
				{"interfaces that did not forward before pass answers on", []Clause{inputIn(setOpened), established(), accept()}},
				{"and nothing else", []Clause{inputIn(setOpened), drop()}},
			}},
			{Name: "postrouting", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting, Priority: 100, Rules: []Rule{
				// Not what the host says to itself from its address there: the name server knows it by that.
				{"guests look like the host to everyone else", []Clause{sourceWithin(c.Subnet()), outputInterface(c.Bridge, false), outputInterface("lo", false), masquerade()}},
			}},
		},
	}
}

// Priorities of bridge chains in the kernel's own order: before all else, and as a filter.
const (
	bridgeFirst  = -300
	bridgeFilter = -200
)

// bridgeTable lets a frame in from a TAP only if it says the truth about who sent it.
func bridgeTable(c Config, ports []Port) Table {
	bound := Set{Name: setPorts, Type: typePort, Concat: true}
	isolated := Set{Name: setIsolated, Type: nftables.TypeIFName}
	for _, p := range ports {
		bound.Elements = append(bound.Elements, portElement(p))
		if p.Isolated {
			isolated.Elements = append(isolated.Elements, nameElement(TAP(p.VM)))
		}
	}
	return Table{
		Family: nftables.TableFamilyBridge, Name: c.Table, Sets: []Set{bound, isolated},
		Chains: []Chain{
			{Name: "ingress", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting, Priority: bridgeFirst, Rules: []Rule{
				{"interfaces that are not ours are not ours to filter", []Clause{notOfGroup(c.Group), accept()}},
				{"nobody reaches link-local addresses", []Clause{etherType(etherIPv4), destinationWithin(linkLocal), drop()}},
				{"IPv4 passes from its own TAP, hardware and IP address", []Clause{etherType(etherIPv4), boundIPv4(), accept()}},
				{"ARP passes that tells its sender's own addresses", []Clause{etherType(etherARP), arpForIPv4(), boundARP(), boundARPSender(), accept()}},
				{"nothing else passes", []Clause{drop()}},
			}},
			{Name: "forward", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Priority: bridgeFilter, Rules: []Rule{
				{"isolated guests reach no other", []Clause{inputIn(setIsolated), drop()}},
				{"no other guest reaches isolated ones", []Clause{outputIn(setIsolated), drop()}},
			}},
		},
	}
}

func addrElement(a netip.Addr) Element { return Element{a.String(), a.AsSlice()} }

func nameElement(name string) Element { return Element{name, ifname(name)} }

// portElement lays out the parts of a key one after the other, each filling whole
// registers of four bytes.
func portElement(p Port) Element {
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		mac = make(net.HardwareAddr, 6) // nobody's: such a port passes nothing
	}
	key := append(ifname(TAP(p.VM)), append(mac[:6:6], 0, 0)...)
	return Element{strings.Join([]string{TAP(p.VM), p.MAC, p.Address.Addr().String()}, " . "), append(key, p.Address.Addr().AsSlice()...)}
}

// ifname is the name of an interface as nftables compares it.
func ifname(name string) []byte {
	b := make([]byte, 16)
	copy(b, name)
	return b
}

// String writes the ruleset as nft would list it, near enough for people.
func (r Ruleset) String() string {
	var b strings.Builder
	for _, t := range r {
		b.WriteString("table " + familyName(t.Family) + " " + t.Name + " {\n")
		for _, s := range t.Sets {
			var elements []string
			for _, e := range s.Elements {
				elements = append(elements, e.Text)
			}
			b.WriteString("\tset " + s.Name + " { " + strings.Join(elements, ", ") + " }\n")
		}
		for _, c := range t.Chains {
			b.WriteString("\tchain " + c.Name + " {\n")
			for _, rule := range c.Rules {
				b.WriteString("\t\t" + rule.Text() + "\n")
			}
			b.WriteString("\t}\n")
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// sameChains tells whether two rulesets differ in nothing but the elements of their sets.
func (r Ruleset) sameChains(other Ruleset) bool {
	return slices.EqualFunc(r, other, func(a, b Table) bool {
		return a.Family == b.Family && a.Name == b.Name &&
			slices.EqualFunc(a.Sets, b.Sets, func(s, t Set) bool { return s.Name == t.Name }) &&
			slices.EqualFunc(a.Chains, b.Chains, func(c, d Chain) bool {
				return c.Name == d.Name && slices.EqualFunc(c.Rules, d.Rules, func(x, y Rule) bool { return x.Text() == y.Text() })
			})
	})
}

// Text writes a rule as nft would.
func (r Rule) Text() string {
	var words []string
	for _, c := range r.Clauses {
		words = append(words, c.Text)
	}
	return strings.Join(words, " ")
}

func familyName(f nftables.TableFamily) string {
	if f == nftables.TableFamilyBridge {
		return "bridge"
	}
	return "ip"
}
