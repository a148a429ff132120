package dns

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func servers(addrs ...string) (all []netip.AddrPort) {
	for _, a := range addrs {
		all = append(all, netip.AddrPortFrom(netip.MustParseAddr(a), 53))
	}
	return all
}

func TestParseResolvConf(t *testing.T) {
	for _, tc := range []struct {
		text string
		want []netip.AddrPort
	}{
		{"", nil},
		{"nameserver 192.0.2.1\nnameserver\t192.0.2.2 \n", servers("192.0.2.1", "192.0.2.2")},
		{"nameserver 192.0.2.1", servers("192.0.2.1")},
		{"nameserver 192.0.2.1 # the router\r\n", servers("192.0.2.1")},
		{"nameserver fe80::1%eth0\nnameserver 2001:db8::1\n", servers("fe80::1%eth0", "2001:db8::1")},
		{"nameserver ::ffff:192.0.2.1\nnameserver 192.0.2.1\n", servers("192.0.2.1")}, // the same
		{"# nameserver 192.0.2.1\n;nameserver 192.0.2.2\n nameserver 192.0.2.3\n", nil},
		{"nameserver\nnameserver resolver.example\nnameserver 192.0.2\nnameservers 192.0.2.1\n", nil},
		{"nameserver 224.0.0.251\nnameserver 0.0.0.0\n", servers("0.0.0.0")},
		{"search example.com\noptions edns0\ndomain x\n", nil},
		{"nameserver 192.0.2.1\x00\nnameserver 192.0.2.2\n", servers("192.0.2.2")},
	} {
		if got := parseResolvConf(tc.text); !slices.Equal(got, tc.want) {
			t.Errorf("%q: got %v, want %v", tc.text, got, tc.want)
		}
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add("nameserver 192.0.2.1\nnameserver fe80::1%eth0\n")
	f.Fuzz(func(t *testing.T, text string) {
		got := parseResolvConf(text)
		if len(got) > maxServers {
			t.Errorf("%d servers", len(got))
		}
		for i, s := range got {
			if !s.IsValid() || s.Port() != 53 || slices.Contains(got[:i], s) {
				t.Errorf("%v", got)
			}
		}
	})
}

// followed watches files in a directory of the test's, and waits for what it is to see.
type followed struct {
	t             *testing.T
	dir           string
	conf, uplinks string
	h             *HostResolvers
}

func follow(t *testing.T, text string) *followed {
	f := &followed{t: t, dir: t.TempDir()}
	f.conf, f.uplinks = filepath.Join(f.dir, "etc", "resolv.conf"), filepath.Join(f.dir, "run", "systemd", "resolve", "resolv.conf")
	f.make(filepath.Dir(f.conf))
	f.make(filepath.Join(f.dir, "run"))
	f.write(f.conf, text)
	h, err := WatchHostResolvers(f.conf, f.uplinks, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	f.h = h
	return f
}

func (f *followed) ok(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *followed) make(dir string)         { f.ok(os.MkdirAll(dir, 0o755)) }
func (f *followed) write(path, text string) { f.ok(os.WriteFile(path, []byte(text), 0o644)) }

func (f *followed) want(what string, addrs ...string) {
	f.t.Helper()
	want := servers(addrs...)
	for limit := time.Now().Add(5 * time.Second); !slices.Equal(f.h.Servers(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			f.t.Fatalf("%s: got %v, want %v", what, f.h.Servers(), want)
		}
	}
}

func TestResolversAreFollowed(t *testing.T) {
	f := follow(t, "nameserver 192.0.2.1\n")
	f.want("at first", "192.0.2.1")
	f.write(f.conf, "nameserver 192.0.2.2\n")
	f.want("written in place", "192.0.2.2")
	for _, addr := range []string{"192.0.2.3", "192.0.2.4"} {
		f.write(f.conf+".new", "nameserver "+addr+"\n")
		f.ok(os.Rename(f.conf+".new", f.conf))
		f.want("replaced", addr)
	}
	f.write(f.conf, "nameserver 192.0.2.5\n")
	f.want("written in place after it was replaced", "192.0.2.5")
	f.ok(os.Remove(f.conf))
	f.want("while it is gone the last that were known hold", "192.0.2.5")
	f.write(f.conf, "nameserver 192.0.2.6\n")
	f.want("there again", "192.0.2.6")

	// systemd-resolved comes up, with a link to a file that is not there yet.
	stub := filepath.Join(filepath.Dir(f.uplinks), "stub-resolv.conf")
	f.ok(os.Symlink("../run/systemd/resolve/stub-resolv.conf", f.conf+".new"))
	f.ok(os.Rename(f.conf+".new", f.conf))
	f.make(filepath.Join(f.dir, "run", "systemd"))
	f.make(filepath.Dir(f.uplinks))
	f.write(f.uplinks, "nameserver 127.0.0.53\nnameserver 192.0.2.7\n")
	f.write(stub, "nameserver 127.0.0.53\n")
	f.want("its upstreams", "192.0.2.7")
	f.write(f.uplinks+".new", "nameserver 192.0.2.8\nnameserver 192.0.2.9\n")
	f.ok(os.Rename(f.uplinks+".new", f.uplinks))
	f.want("its upstreams changed", "192.0.2.8", "192.0.2.9")
	f.write(stub, "nameserver 192.0.2.10\n")
	f.want("what the link leads to changed", "192.0.2.10")
}

func TestWithoutResolvConf(t *testing.T) {
	dir := t.TempDir()
	h, err := WatchHostResolvers(filepath.Join(dir, "none"), filepath.Join(dir, "a", "b"), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	if got := h.Servers(); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}
