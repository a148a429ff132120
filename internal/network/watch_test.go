package network

import (
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Of what is told of interfaces only that of TAPs is no reason to look at the host.
func TestOthersLinks(t *testing.T) {
	link := func(kind netlink.HeaderType, name string) netlink.Message {
		attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.IFLA_MTU, Data: make([]byte, 4)}, {Type: unix.IFLA_IFNAME, Data: append([]byte(name), 0)}})
		if err != nil {
			t.Fatal(err)
		}
		return netlink.Message{Header: netlink.Header{Type: kind}, Data: append(make([]byte, unix.SizeofIfInfomsg), attrs...)}
	}
	tap := TAP("0123456789ab")
	for _, tt := range []struct {
		what string
		m    netlink.Message
		want bool
	}{
		{"a TAP comes", link(unix.RTM_NEWLINK, tap), false},
		{"a TAP goes", link(unix.RTM_DELLINK, tap), false},
		{"the bridge changes", link(unix.RTM_NEWLINK, "banger0"), true},
		{"a VPN comes", link(unix.RTM_NEWLINK, "tun0"), true},
		{"an address comes", netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWADDR}, Data: link(0, tap).Data}, true},
		{"nonsense", netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWLINK}, Data: []byte{1}}, true},
	} {
		if got := othersLinks(tt.m); got != tt.want {
			t.Errorf("%s: it counts: %v", tt.what, got)
		}
	}
}

// Rules that change wait for nothing that something else does.
func TestLinger(t *testing.T) {
	filters, done := make(chan struct{}, 1), make(chan struct{})
	filters <- struct{}{}
	linger(filters, done, time.Hour)
	close(done)
	linger(filters, done, time.Hour)
	begin := time.Now()
	linger(filters, nil, time.Millisecond)
	if time.Since(begin) < time.Millisecond {
		t.Error("what goes on is not let come to an end")
	}
}
