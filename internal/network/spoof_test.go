package network

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// frame builds what a guest could put on the wire. What is not set differently is honest.
type frame struct {
	src, dst  net.HardwareAddr
	tag       []byte // between the addresses and the type
	ethertype uint16
	payload   []byte
}

// vnetHeader is in front of each frame on a TAP: nothing is left for the card to do.
var vnetHeader = make([]byte, 10)

func (f frame) bytes() []byte {
	b := append(append(bytes.Clone(vnetHeader), f.dst...), f.src...)
	b = binary.BigEndian.AppendUint16(append(b, f.tag...), f.ethertype)
	return append(b, f.payload...)
}

func ipv4(src, dst netip.Addr, mark []byte) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(h[2:], uint16(28+len(mark)))
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum+sum>>16))
	udp := []byte{0x10, 0, 0x10, 0, 0, byte(8 + len(mark)), 0, 0} // without a checksum
	return append(append(h, udp...), mark...)
}

func arp(op uint16, senderMAC net.HardwareAddr, sender, target netip.Addr, mark []byte) []byte {
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, senderMAC...), sender.AsSlice()...)
	b = append(append(b, make([]byte, 6)...), target.AsSlice()...)
	return append(b, mark...)
}

// Of each kind of lie none of 20 frames gets to another guest; of the truth, all do.
func TestSpoofedFrames(t *testing.T) {
	w := newWorld(t)
	plain := func() (Port, *os.File) {
		p := w.port()
		f, err := w.bridge.Attach(t.Context(), p)
		must(t, err)
		return p, f
	}
	me, out := plain()
	other, in := plain()
	mac, err := net.ParseMAC(me.MAC)
	must(t, err)
	theirs, err := net.ParseMAC(other.MAC)
	must(t, err)
	a, b := me.Address.Addr(), other.Address.Addr()
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	outside := netip.MustParseAddr("192.0.2.77")
	vlan := []byte{0x81, 0, 0, 5}
	for _, kind := range []struct {
		name   string
		honest bool
		make   func(mark []byte) frame
	}{
		{"IPv4", true, func(m []byte) frame { return frame{mac, theirs, nil, 0x0800, ipv4(a, b, m)} }},
		{"IPv4 to all", true, func(m []byte) frame { return frame{mac, broadcast, nil, 0x0800, ipv4(a, b, m)} }},
		{"ARP request", true, func(m []byte) frame { return frame{mac, broadcast, nil, 0x0806, arp(1, mac, a, b, m)} }},
		{"ARP reply", true, func(m []byte) frame { return frame{mac, theirs, nil, 0x0806, arp(2, mac, a, b, m)} }},
		{"another's hardware address", false, func(m []byte) frame { return frame{theirs, broadcast, nil, 0x0800, ipv4(a, b, m)} }},
		{"a hardware address of nobody", false, func(m []byte) frame {
			return frame{net.HardwareAddr{2, 9, 9, 9, 9, 9}, broadcast, nil, 0x0800, ipv4(a, b, m)}
		}},
		{"another's address", false, func(m []byte) frame { return frame{mac, broadcast, nil, 0x0800, ipv4(b, a, m)} }},
		{"the gateway's address", false, func(m []byte) frame { return frame{mac, theirs, nil, 0x0800, ipv4(Gateway(w.subnet), b, m)} }},
		{"an address of elsewhere", false, func(m []byte) frame { return frame{mac, theirs, nil, 0x0800, ipv4(outside, b, m)} }},
		{"no address", false, func(m []byte) frame { return frame{mac, theirs, nil, 0x0800, ipv4(netip.IPv4Unspecified(), b, m)} }},
		{"both of another", false, func(m []byte) frame { return frame{theirs, broadcast, nil, 0x0800, ipv4(b, a, m)} }},
		{"to a link-local address", false, func(m []byte) frame {
			return frame{mac, broadcast, nil, 0x0800, ipv4(a, netip.MustParseAddr("169.254.169.254"), m)}
		}},
		{"ARP for the gateway's address", false, func(m []byte) frame { return frame{mac, broadcast, nil, 0x0806, arp(2, mac, Gateway(w.subnet), b, m)} }},
		{"ARP for another's address", false, func(m []byte) frame { return frame{mac, broadcast, nil, 0x0806, arp(1, mac, b, a, m)} }},
		{"ARP with another's hardware address in it", false, func(m []byte) frame { return frame{mac, broadcast, nil, 0x0806, arp(2, theirs, a, b, m)} }},
		{"ARP from another's hardware address", false, func(m []byte) frame { return frame{theirs, broadcast, nil, 0x0806, arp(2, mac, a, b, m)} }},
		{"ARP of other lengths", false, func(m []byte) frame {
			p := arp(2, mac, a, b, m)
			p[4] = 8
			return frame{mac, broadcast, nil, 0x0806, p}
		}},
		{"IPv6", false, func(m []byte) frame { return frame{mac, broadcast, nil, 0x86dd, append(make([]byte, 40), m...)} }},
		{"IPv4 with a tag", false, func(m []byte) frame { return frame{mac, broadcast, vlan, 0x0800, ipv4(a, b, m)} }},
		{"ARP with a tag", false, func(m []byte) frame { return frame{mac, broadcast, vlan, 0x0806, arp(1, mac, a, b, m)} }},
		{"IPv4 with two tags", false, func(m []byte) frame {
			return frame{mac, broadcast, append(bytes.Clone(vlan), vlan...), 0x0800, ipv4(a, b, m)}
		}},
		{"a bridge's own protocol", false, func(m []byte) frame {
			return frame{mac, net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, nil, 0x0026, append([]byte{0x42, 0x42, 3}, m...)}
		}},
		{"an unknown protocol", false, func(m []byte) frame { return frame{mac, broadcast, nil, 0x88b5, m} }},
		{"PPPoE", false, func(m []byte) frame { return frame{mac, broadcast, nil, 0x8864, append(make([]byte, 8), m...)} }},
	} {
		const sent = 20
		for i := range sent {
			_, err := out.Write(kind.make(fmt.Appendf(nil, "<%s %02d>", kind.name, i)).bytes())
			must(t, err)
		}
		// What comes after them has them all behind it: frames keep their order.
		_, err := out.Write(frame{mac, theirs, nil, 0x0800, ipv4(a, b, []byte("<the last one>"))}.bytes())
		must(t, err)
		got := 0
		for last := false; !last; {
			must(t, in.SetReadDeadline(time.Now().Add(patience)))
			raw := make([]byte, 2048)
			n, err := in.Read(raw)
			if err != nil {
				t.Fatalf("%s: %v", kind.name, err)
			}
			if bytes.Contains(raw[:n], []byte("<"+kind.name+" ")) {
				got++
			}
			last = bytes.Contains(raw[:n], []byte("<the last one>"))
		}
		want := 0
		if kind.honest {
			want = sent
		}
		if got != want {
			t.Errorf("%s: %d of %d passed, want %d", kind.name, got, sent, want)
		}
	}
}
