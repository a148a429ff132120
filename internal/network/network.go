// Package network owns what connects VMs to the host and through it to the world: a bridge
// with one TAP for each VM, the addresses on it, our own nftables tables, IPv4 forwarding,
// and the listeners that forward ports. It takes the whole of what is wanted and makes it
// so, by netlink only, and touches nothing that others have made. It must not know what a
// VM is beyond its id, nor how one is run.
package network

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
)

// Port is a VM's place on the bridge. Everything about it on the host derives from this.
type Port struct {
	VM         string       // id: 12 hex digits
	MAC        string       // of the guest's network device: aa:bb:cc:dd:ee:ff
	Address    netip.Prefix // of the guest, with the length of the subnet's prefix
	Isolated   bool         // other guests can't reach it, nor it them
	HostAccess bool         // it may reach every service of the host's
	Forwards   []Forward
	ByName     bool // the VMM opens the TAP by its name, as the only one who does
	Owner      int  // uid of a VMM that does; no other user but root can open it
}

// Config is all that is wanted of the bridge. With no ports nothing is wanted at all.
type Config struct {
	Bridge string // name of the interface
	Table  string // name of our nftables tables
	Group  uint32 // of interfaces, to which our TAPs belong
	Ports  []Port
}

// Subnet is that of the ports, which all lie in one.
func (c Config) Subnet() netip.Prefix {
	if len(c.Ports) == 0 {
		return netip.Prefix{}
	}
	return c.Ports[0].Address.Masked()
}

// Gateway is the host's own address in a subnet of guests: the first.
func Gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// tapPrefix and a VM's id make the 15 characters that the name of an interface may have.
const tapPrefix = "bgr"

// TAP is the name of a VM's TAP device.
func TAP(vm string) string { return tapPrefix + vm }

// VMOf is the reverse of [TAP]: the id in the name, or "".
func VMOf(link string) string {
	id, ok := strings.CutPrefix(link, tapPrefix)
	if !ok || len(id) != 12 || strings.Trim(id, "0123456789abcdef") != "" {
		return ""
	}
	return id
}

// maxAlias is the longest alias that the kernel keeps of an interface, in bytes.
const maxAlias = 255

// ownerAlias marks the interfaces of the banger whose state directory this is: the kernel
// keeps it with them, whatever becomes of the daemon.
func ownerAlias(state string) string {
	alias := "banger " + state
	if len(alias) > maxAlias {
		return "banger " + digest(state)
	}
	return alias
}

// tableName is the name of the nftables tables of the banger whose state directory this is.
func tableName(state string) string { return "banger_" + digest(state)[:8] }

// linkGroup is the number by which nftables knows the TAPs of this state directory's banger.
// 0 is that of interfaces that belong to none.
func linkGroup(state string) uint32 {
	sum := sha256.Sum256([]byte(state))
	return binary.BigEndian.Uint32(sum[:])&0x7fffffff | 1 // the kernel takes it for a signed number
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}
