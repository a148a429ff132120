package publish

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/dns"
)

type noResolvers struct{}

func (noResolvers) Servers() []netip.AddrPort { return nil }

// serveNames serves web.vm.
func serveNames(t *testing.T, addr netip.AddrPort) (stop func()) {
	s := dns.NewServer(noResolvers{})
	s.Set(netip.Prefix{}, []dns.Record{record("web", "198.18.77.2", "aa")})
	l, err := s.ServeHost(addr)
	must(t, err)
	return func() { must(t, l.Close()) }
}

func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		c         Config
		name, why string
	}{
		{Config{Want: "hosts"}, "hosts", "the config file says so"},
		{Config{Want: "none", Root: true}, "none", "the config file says so"},
		{Config{Want: "auto", Command: []string{"x"}}, "exec", "names a command"},
		{Config{Want: "auto"}, "none", "without root"},
	} {
		got := Choose(t.Context(), tc.c)
		if got.Name() != tc.name || !strings.Contains(got.Why, tc.why) || len(got.Others) != 3 {
			t.Errorf("%+v: %s, because %s, and not %v", tc.c, got.Name(), got.Why, got.Others)
		}
	}
	if got := Choose(t.Context(), Config{Want: "auto", Root: true}); got.Name() != "hosts" && got.Name() != "resolved" {
		t.Errorf("as root: %s", got.Name())
	}
}

func TestWhetherResolvedIsUsed(t *testing.T) {
	for _, tc := range []struct {
		resolv, nsswitch string
		want             bool
	}{
		{"nameserver 127.0.0.53\n", "hosts: files dns\n", true},
		{"nameserver 192.0.2.1\n", "hosts: files dns\n", false},
		{"nameserver 192.0.2.1\n", "passwd: x\nhosts:\tmymachines resolve [!UNAVAIL=return] files dns\n", true},
		{"", "", false},
	} {
		dir := t.TempDir()
		resolv, nsswitch := filepath.Join(dir, "r"), filepath.Join(dir, "n")
		must(t, os.WriteFile(resolv, []byte(tc.resolv), 0o600))
		must(t, os.WriteFile(nsswitch, []byte(tc.nsswitch), 0o600))
		if got := resolvedIsUsed(resolv, nsswitch); got != tc.want {
			t.Errorf("%q and %q: %t", tc.resolv, tc.nsswitch, got)
		}
	}
	if resolvedIsUsed("/nonexistent/r", "/nonexistent/n") {
		t.Error("without any file")
	}
}
