package guestd_test

import (
	"path/filepath"
	"testing"

	"banger/internal/guest/proto"
)

// What an image has to configure its network with is told that it is done.
func TestTheImagesOwnNetworkPrograms(t *testing.T) {
	w := newWorld(t)
	put(t, w.root+"/etc/network/interfaces", "auto eth0\niface eth0 inet dhcp\n")
	put(t, w.root+"/run/network/ifstate", "lo=lo\n")
	c := proto.Configure{Links: []proto.Link{{MAC: "02:00:00:00:00:01", Addresses: []string{"10.86.0.9/22"}, Gateway: "10.86.0.1"}},
		Nameservers: []string{"10.86.0.1"}, Search: []string{"vm"}}
	w.configure(t, c)
	wantFile(t, w.root+"/run/systemd/network/00-banger.network",
		"[Match]\nMACAddress=02:00:00:00:00:01\n\n[Network]\nDHCP=no\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nKeepConfiguration=yes\n"+
			"Address=10.86.0.9/22\nDNS=10.86.0.1\nDomains=vm\n\n[Route]\nGateway=10.86.0.1\nGatewayOnLink=yes\n")
	wantFile(t, w.root+"/run/NetworkManager/conf.d/00-banger.conf", "[main]\ndns=none\n\n[keyfile]\nunmanaged-devices=interface-name:eth0\n")
	wantFile(t, w.root+"/run/network/ifstate", "lo=lo\neth0=eth0\n")
	wantFile(t, w.root+"/run/network/ifstate.eth0", "eth0=eth0\n")
	wantFile(t, w.root+"/run/systemd/system/networking.service.d/00-banger.conf", "[Service]\nEnvironment=\"EXCLUDE_INTERFACES=eth0\"\n")

	w.configure(t, c)
	select {
	case <-w.system.reloaded:
		t.Error("nothing has changed")
	default:
	}
	c.Links[0].Addresses = []string{"10.86.0.10/22"}
	w.configure(t, c)
	if <-w.system.reloaded {
		t.Error("the resolver has not changed")
	}
	if w.system.linked != 4 {
		t.Errorf("links were set %d times: the last time is to be after the programs have read what is so", w.system.linked)
	}
	c.Nameservers = []string{"10.99.0.1"}
	w.configure(t, c)
	if !<-w.system.reloaded {
		t.Error("the resolver has changed")
	}
}

// An image without systemd-resolved has the resolvers in its file, each time.
func TestPlainResolvConf(t *testing.T) {
	w := newWorld(t)
	c := proto.Configure{Nameservers: []string{"10.86.0.1"}}
	w.configure(t, c)
	wantFile(t, w.root+"/etc/resolv.conf", "nameserver 10.86.0.1\n")
	c.Nameservers = []string{"10.99.0.1"}
	w.configure(t, c)
	wantFile(t, w.root+"/etc/resolv.conf", "nameserver 10.99.0.1\n")
	if left, err := filepath.Glob(w.root + "/run/*"); err != nil || len(left) > 0 {
		t.Errorf("a machine without a network has %v, %v", left, err)
	}
}
