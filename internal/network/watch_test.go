package network

import (
	"slices"
	"testing"
	"testing/synctest"
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

// Filters are looked at soon, also while the rest is let come to an end, and what could not be set
// is tried again though things change all the time.
func TestFollow(t *testing.T) {
	for _, tt := range []struct {
		what         string
		filters      []time.Duration // when something changes
		rest         []time.Duration
		fineFrom     time.Duration
		looks, tries []time.Duration
	}{
		{what: "rules change", filters: []time.Duration{0}, looks: []time.Duration{shortPause}},
		{what: "a burst", filters: []time.Duration{0, shortPause / 2}, rest: []time.Duration{0, shortPause / 2}, looks: []time.Duration{shortPause}},
		{what: "a link changes", rest: []time.Duration{0}, looks: []time.Duration{longPause}},
		{what: "rules change after a link", rest: []time.Duration{0}, filters: []time.Duration{longPause / 2}, looks: []time.Duration{longPause/2 + shortPause}},
		{
			what: "links change while something can't be set", rest: []time.Duration{0, 4 * time.Second, 8 * time.Second}, fineFrom: 10 * time.Second,
			looks: []time.Duration{longPause, 4*time.Second + longPause, 8*time.Second + longPause}, tries: []time.Duration{longPause + retryAfter},
		},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				filters, rest, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
				begin := time.Now()
				var looks, tries []time.Duration
				go follow(filters, rest, done, retryAfter, func(retry bool) bool {
					at := time.Since(begin)
					if retry {
						tries = append(tries, at)
					} else {
						looks = append(looks, at)
					}
					return at >= tt.fineFrom
				})
				for _, at := range tt.filters {
					time.AfterFunc(at, func() { filters <- struct{}{} })
				}
				for _, at := range tt.rest {
					time.AfterFunc(at, func() { rest <- struct{}{} })
				}
				time.Sleep(time.Minute)
				close(done)
				synctest.Wait()
				if !slices.Equal(looks, tt.looks) || !slices.Equal(tries, tt.tries) {
					t.Errorf("it looked after %v and tried after %v, not after %v and %v", looks, tries, tt.looks, tt.tries)
				}
			})
		})
	}
}
