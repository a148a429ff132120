package network

import (
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"banger/internal/errs"
)

func prefixes(texts ...string) (all []Used) {
	for _, s := range texts {
		all = append(all, Used{netip.MustParsePrefix(s), s})
	}
	return all
}

func TestChosenSubnetOverlapsNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		used := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Used {
			a := netip.AddrFrom4([4]byte{rapid.SampledFrom([]byte{10, 172, 192, 100}).Draw(t, "a"), rapid.Byte().Draw(t, "b"), rapid.Byte().Draw(t, "c"), rapid.Byte().Draw(t, "d")})
			p := netip.PrefixFrom(a, rapid.IntRange(0, 32).Draw(t, "bits"))
			return Used{p.Masked(), p.String()}
		}), 0, 200).Draw(t, "used")
		got, err := ChooseSubnet(used)
		if err != nil {
			t.Skip() // all is taken, which the table below looks at
		}
		if _, err := ParseSubnet(got.String()); err != nil {
			t.Fatal(err)
		}
		for _, u := range used {
			if u.Prefix.Bits() >= wideBits && u.Prefix.Overlaps(got) {
				t.Fatalf("%s overlaps %s", got, u.Prefix)
			}
		}
	})
}

func TestChooseSubnet(t *testing.T) {
	for _, tc := range []struct {
		used []Used
		in   string // where the choice lies; empty: there is none
	}{
		{nil, "10.0.0.0/8"},
		{prefixes("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "192.168.1.0/24"), "10.0.0.0/8"}, // a VPN's default route in halves
		{prefixes("10.0.0.0/8"), "172.16.0.0/12"},
		{prefixes("10.0.0.0/8", "172.16.0.0/12"), "192.168.0.0/16"},
		{prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"), ""},
		{prefixes("10.0.0.0/9", "10.128.0.0/10", "10.192.0.0/11", "10.224.0.0/12", "10.240.0.0/13", "10.248.0.0/14", "10.252.0.0/15", "10.254.0.0/16", "10.255.0.0/17", "10.255.128.0/18", "10.255.192.0/19", "10.255.224.0/20", "10.255.240.0/21", "10.255.248.0/22"), "10.255.252.0/22"},
	} {
		got, err := ChooseSubnet(tc.used)
		if tc.in == "" {
			if errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "" {
				t.Errorf("%v: got %v, %v", tc.used, got, err)
			}
			continue
		}
		if err != nil || !netip.MustParsePrefix(tc.in).Contains(got.Addr()) {
			t.Errorf("%v: got %v, %v", tc.used, got, err)
		}
	}
}

func TestParseSubnet(t *testing.T) {
	for _, good := range []string{"10.86.0.0/22", "172.16.0.0/16", "192.168.9.8/29", "100.64.0.0/24"} {
		if p, err := ParseSubnet(good); err != nil || p.String() != good {
			t.Errorf("%s: %v, %v", good, p, err)
		}
	}
	for _, bad := range []string{"", "x", "10.0.0.1", "0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/30", "10.0.0.0/32", "10.0.0.1/24", "8.8.8.0/24",
		"fd00::/64", "::ffff:10.0.0.0/120", "169.254.0.0/24", "127.0.0.0/24", "224.0.0.0/24", "10.0.0.0/024", "10.0.0.0/-1", "10.0.0.0/24\n"} {
		if p, err := ParseSubnet(bad); errs.KindOf(err) != errs.Invalid || errs.HintOf(err) == "" {
			t.Errorf("%q: %v, %v", bad, p, err)
		}
	}
}

func TestAllocateUsesEveryAddressOnce(t *testing.T) {
	subnet := netip.MustParsePrefix("10.1.2.0/24")
	taken := map[netip.Addr]bool{}
	for i := range 253 {
		p, err := Allocate(subnet, fmt.Sprintf("%012x", i), func(a netip.Addr) bool { return taken[a] })
		if err != nil || taken[p.Addr()] || p.Masked() != subnet || p.Addr() == Gateway(subnet) || p.Addr() == subnet.Addr() || p.Addr().String() == "10.1.2.255" {
			t.Fatalf("number %d: %v, %v", i, p, err)
		}
		taken[p.Addr()] = true
	}
	if p, err := Allocate(subnet, "more", func(a netip.Addr) bool { return taken[a] }); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("a full subnet gave %v, %v", p, err)
	}
}

func TestNamesDeriveFromTheVM(t *testing.T) {
	const id = "0123456789ab"
	if name := TAP(id); len(name) != 15 || VMOf(name) != id {
		t.Errorf("%s, %s", name, VMOf(name))
	}
	for _, other := range []string{"", "eth0", "bgr", "bgr0123456789a", "bgr0123456789aX", "bgr0123456789abc"} {
		if id := VMOf(other); id != "" {
			t.Errorf("%q is of VM %q", other, id)
		}
	}
	if ownerAlias("/a") == ownerAlias("/b") || tableName("/a") == tableName("/b") || len(ownerAlias(string(make([]byte, 4096)))) > maxAlias {
		t.Error("two state directories are not told apart")
	}
}
