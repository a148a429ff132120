package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Clause is a part of a rule: as nft writes it, and as the kernel runs it.
type Clause struct {
	Text  string
	exprs []expr.Any
}

// The registers that clauses compute in. A key of several parts lies in consecutive
// registers of four bytes, the first of which the kernel numbers 8.
const (
	reg   = 1 // sixteen bytes
	reg32 = 8
)

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
)

func accept() Clause {
	return Clause{"accept", []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
}

func drop() Clause {
	return Clause{"drop", []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}}
}

func masquerade() Clause { return Clause{"masquerade", []expr.Any{&expr.Masq{}}} }

// equal compares what a register holds with data, or has it differ.
func equal(is bool, data []byte) expr.Any {
	op := expr.CmpOpEq
	if !is {
		op = expr.CmpOpNeq
	}
	return &expr.Cmp{Op: op, Register: reg, Data: data}
}

func meta(text string, key expr.MetaKey, is bool, name string) Clause {
	sign := " "
	if !is {
		sign = " != "
	}
	return Clause{text + sign + fmt.Sprintf("%q", name), []expr.Any{&expr.Meta{Key: key, Register: reg}, equal(is, ifname(name))}}
}

func inputInterface(name string, is bool) Clause {
	return meta("iifname", expr.MetaKeyIIFNAME, is, name)
}
func outputInterface(name string, is bool) Clause {
	return meta("oifname", expr.MetaKeyOIFNAME, is, name)
}

// notOfGroup is of frames from interfaces without our mark: all TAPs bear it before they come
// on the bridge, so that none is missed. (Not every kernel can tell a frame's bridge.)
func notOfGroup(group uint32) Clause {
	return Clause{fmt.Sprintf("iifgroup != %#x", group), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFGROUP, Register: reg}, equal(false, binaryutil.NativeEndian.PutUint32(group))}}
}

// inSet tells whether what load leaves in a register is in the set.
func inSet(text, set string, from uint32, load ...expr.Any) Clause {
	return Clause{text + " @" + set, append(load, &expr.Lookup{SourceRegister: from, SetName: set})}
}

func inputIn(set string) Clause {
	return inSet("iifname", set, reg, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg})
}

func outputIn(set string) Clause {
	return inSet("oifname", set, reg, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg})
}

// Where the parts of headers lie, in bytes from their beginning.
const (
	etherSource    = 6
	etherTypeAt    = 12
	ipSource       = 12
	ipDestination  = 16
	arpFixed       = 0 // hardware and protocol, and the lengths of their addresses
	arpSenderMAC   = 8
	arpSenderIP    = 14
	transportDst   = 2
	icmpType       = 0
	icmpEchoAsking = 8
)

func link(offset, length, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseLLHeader, Offset: offset, Len: length}
}

func network(offset, length, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func transport(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

func sourceIn(set string) Clause { return inSet("ip saddr", set, reg, network(ipSource, 4, reg)) }

func destinationIn(set string) Clause {
	return inSet("ip daddr", set, reg, network(ipDestination, 4, reg))
}

func destination(a netip.Addr) Clause {
	return Clause{"ip daddr " + a.String(), []expr.Any{network(ipDestination, 4, reg), equal(true, a.AsSlice())}}
}

func within(text string, offset uint32, p netip.Prefix) Clause {
	return Clause{text + " " + p.String(), []expr.Any{
		network(offset, 4, reg),
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: net.CIDRMask(p.Bits(), 32), Xor: make([]byte, 4)},
		equal(true, p.Masked().Addr().AsSlice()),
	}}
}

func sourceWithin(p netip.Prefix) Clause      { return within("ip saddr", ipSource, p) }
func destinationWithin(p netip.Prefix) Clause { return within("ip daddr", ipDestination, p) }

func established() Clause {
	return Clause{"ct state established,related", []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: make([]byte, 4)},
		equal(false, make([]byte, 4)),
	}}
}

func protocol(number byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, equal(true, []byte{number})}
}

func echoRequest() Clause {
	return Clause{"icmp type echo-request", append(protocol(unix.IPPROTO_ICMP), transport(icmpType, 1), equal(true, []byte{icmpEchoAsking}))}
}

func port(name string, number uint16) Clause {
	proto := byte(unix.IPPROTO_TCP)
	if name == "udp" {
		proto = unix.IPPROTO_UDP
	}
	return Clause{fmt.Sprintf("%s dport %d", name, number),
		append(protocol(proto), transport(transportDst, 2), equal(true, binary.BigEndian.AppendUint16(nil, number)))}
}

// etherType looks at the frame itself, so that a tagged one is not taken for what it carries.
func etherType(number uint16) Clause {
	return Clause{fmt.Sprintf("ether type %#04x", number), []expr.Any{link(etherTypeAt, 2, reg), equal(true, binary.BigEndian.AppendUint16(nil, number))}}
}

// arpForIPv4 has the addresses in an ARP packet lie where the clauses below look for them.
func arpForIPv4() Clause {
	return Clause{"arp htype 1 arp ptype ip arp hlen 6 arp plen 4",
		[]expr.Any{network(arpFixed, 6, reg), equal(true, []byte{0, 1, etherIPv4 >> 8, etherIPv4 & 0xff, 6, 4})}}
}

// bound looks the TAP that a frame came by up among the ports, with two addresses in it.
func bound(text string, mac, ip expr.Any) Clause {
	return inSet("iifname . "+text, setPorts, reg32, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg32}, mac, ip)
}

// The registers of the parts of a key: a name takes four, a hardware address two.
const (
	regMAC = reg32 + 4
	regIP  = regMAC + 2
)

func boundIPv4() Clause {
	return bound("ether saddr . ip saddr", link(etherSource, 6, regMAC), network(ipSource, 4, regIP))
}

func boundARP() Clause {
	return bound("ether saddr . arp saddr ip", link(etherSource, 6, regMAC), network(arpSenderIP, 4, regIP))
}

func boundARPSender() Clause {
	return bound("arp saddr ether . arp saddr ip", network(arpSenderMAC, 6, regMAC), network(arpSenderIP, 4, regIP))
}
