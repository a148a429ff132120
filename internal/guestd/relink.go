package guestd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/guest/proto"
)

// bareLink is an interface without addresses.
type bareLink struct {
	index     uint32
	linkLocal bool // it had an IPv6 address that the kernel has made of that of the hardware
}

// bareLinks takes from all interfaces but loopback what a clone is to have of its own, and leaves
// them up: to bring a device up takes the kernel three times as much code as to readdress it. It
// returns them by their hardware addresses.
func bareLinks() (bare map[string]bareLink, err error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	bare = map[string]bareLink{}
	for _, link := range all {
		if a := link.Attrs(); a.Flags&net.FlagLoopback == 0 {
			had, bareErr := lay(link)
			bare[a.HardwareAddr.String()] = bareLink{uint32(a.Index), had}
			err = errors.Join(err, bareErr)
		}
	}
	return bare, err
}

// lay lays an interface bare.
func lay(link netlink.Link) (linkLocal bool, err error) {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	for _, a := range addrs {
		linkLocal = linkLocal || a.IP.Equal(linkLocalOf(link.Attrs().HardwareAddr))
		if e := netlink.AddrDel(link, &a); !errors.Is(e, unix.EADDRNOTAVAIL) { // gone with one before it
			err = errors.Join(err, e)
		}
	}
	routes, e := netlink.RouteList(link, netlink.FAMILY_ALL)
	err = errors.Join(err, e)
	for _, r := range routes {
		if e := netlink.RouteDel(&r); !errors.Is(e, unix.ESRCH) { // gone with another
			err = errors.Join(err, e)
		}
	}
	neighbours, e := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	err = errors.Join(err, e)
	for _, n := range neighbours {
		if e := netlink.NeighDel(&n); !errors.Is(e, unix.ENOENT) {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		err = fmt.Errorf("interface %s: %w", link.Attrs().Name, err)
	}
	return linkLocal, err
}

// linkLocalOf is the IPv6 address that the kernel makes of that of the hardware (RFC 4291).
func linkLocalOf(mac net.HardwareAddr) net.IP {
	if len(mac) != 6 {
		return nil
	}
	return net.IP{0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}
}

// relink gives bare interfaces their new addresses. All is said to the kernel at once and nothing
// is asked of it: in a machine that has just come to be each kind of question costs a millisecond.
func relink(bare map[string]bareLink, links []proto.Link) error {
	if len(links) == 0 {
		return nil
	}
	var b batch
	for _, l := range links {
		had, ok := bare[l.OldMAC]
		if !ok {
			return fmt.Errorf("there was no interface %s", l.OldMAC)
		}
		if err := b.link(had, l); err != nil {
			return err
		}
	}
	return b.send()
}

// batch is messages to the kernel, of rtnetlink(7).
type batch struct {
	bytes []byte
	n     int
}

// attribute is one of a message, with its value as the kernel has it.
type attribute struct {
	kind  uint16
	value []byte
}

// add appends a message: a structure of the kernel's and attributes.
func (b *batch) add(kind, flags uint16, body []byte, attributes ...attribute) {
	begin := len(b.bytes)
	b.bytes = append(b.bytes, make([]byte, unix.NLMSG_HDRLEN)...)
	b.bytes = append(b.bytes, body...)
	for _, a := range attributes {
		b.bytes = binary.NativeEndian.AppendUint16(b.bytes, uint16(unix.SizeofRtAttr+len(a.value)))
		b.bytes = binary.NativeEndian.AppendUint16(b.bytes, a.kind)
		b.bytes = append(b.bytes, a.value...)
		for len(b.bytes)%unix.NLMSG_ALIGNTO != 0 {
			b.bytes = append(b.bytes, 0)
		}
	}
	header := b.bytes[begin:]
	binary.NativeEndian.PutUint32(header, uint32(len(header)))
	binary.NativeEndian.PutUint16(header[4:], kind)
	binary.NativeEndian.PutUint16(header[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b.n++
}

// link appends what gives an interface its addresses. Those of IP come before that of the hardware,
// at whose change the kernel tells neighbours who remember who had them before (arp_notify).
func (b *batch) link(had bareLink, l proto.Link) error {
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return err
	}
	number := binary.NativeEndian.AppendUint32(nil, had.index)
	const set = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	for _, cidr := range l.Addresses {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return err
		}
		// struct ifaddrmsg: family, bits, flags, scope, interface.
		message := append([]byte{family(p.Addr()), byte(p.Bits()), 0, unix.RT_SCOPE_UNIVERSE}, number...)
		attributes := []attribute{{unix.IFA_ADDRESS, p.Addr().AsSlice()}}
		if p.Addr().Is4() {
			attributes = append(attributes, attribute{unix.IFA_LOCAL, p.Addr().AsSlice()})
			if p.Bits() < 31 { // a smaller subnet has none (RFC 3021)
				attributes = append(attributes, attribute{unix.IFA_BROADCAST, broadcast(p)})
			}
		} else {
			message[2] = unix.IFA_F_NODAD
		}
		b.add(unix.RTM_NEWADDR, set, message, attributes...)
	}
	if had.linkLocal {
		b.add(unix.RTM_NEWADDR, set, append([]byte{unix.AF_INET6, 64, unix.IFA_F_NODAD, unix.RT_SCOPE_LINK}, number...), attribute{unix.IFA_ADDRESS, linkLocalOf(mac)})
	}
	// struct ifinfomsg: family, padding, type, interface, flags, and which of them change.
	message := append(make([]byte, 4), number...)
	message = binary.NativeEndian.AppendUint32(message, unix.IFF_UP)
	message = binary.NativeEndian.AppendUint32(message, unix.IFF_UP)
	attributes := []attribute{{unix.IFLA_ADDRESS, mac}}
	if l.MTU > 0 {
		attributes = append(attributes, attribute{unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, uint32(l.MTU))})
	}
	b.add(unix.RTM_NEWLINK, 0, message, attributes...)
	if l.Gateway == "" {
		return nil
	}
	gateway, err := netip.ParseAddr(l.Gateway)
	if err != nil {
		return err
	}
	// struct rtmsg: family, bits of destination and source, tos, table, protocol, scope, type, flags.
	// It is the route of setRoute.
	route := []byte{family(gateway), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}
	route = binary.NativeEndian.AppendUint32(route, unix.RTNH_F_ONLINK)
	b.add(unix.RTM_NEWROUTE, set, route, attribute{unix.RTA_GATEWAY, gateway.AsSlice()}, attribute{unix.RTA_OIF, number})
	return nil
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// broadcast is the last address of an IPv4 subnet.
func broadcast(p netip.Prefix) []byte {
	a := p.Addr().As4()
	last := binary.BigEndian.Uint32(a[:]) | uint32(1<<(32-p.Bits())-1)
	return binary.BigEndian.AppendUint32(nil, last)
}

// send has the kernel do it all, and returns what it refuses.
func (b *batch) send() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, b.bytes); err != nil {
		return os.NewSyscallError("write", err)
	}
	var refused error
	answer := make([]byte, os.Getpagesize())
	for range b.n { // by the time that it has been written the kernel has done it, and answers each by itself
		n, err := unix.Read(fd, answer)
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		const answered = unix.NLMSG_HDRLEN + 4 // struct nlmsgerr begins with the error, negated
		if n < answered || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
			return errors.New("the kernel answers what was not asked")
		}
		if code := int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); code != 0 {
			refused = errors.Join(refused, unix.Errno(-code))
		}
	}
	return refused
}
