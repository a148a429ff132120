package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"banger/api"
)

// named returns a banger with a config file of its own and this text in its hosts file.
func named(t *testing.T, config, hosts string) (b *banger, hostsFile string) {
	t.Helper()
	b = newBanger(t)
	dir := t.TempDir()
	hostsFile = filepath.Join(dir, "hosts")
	if err := os.Mkdir(filepath.Join(dir, "banger"), 0o700); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{hostsFile: strings.ReplaceAll(hosts, "STATE", b.state), filepath.Join(dir, "banger", "config.toml"): config} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b.env = append(b.env, "XDG_CONFIG_HOME="+dir, "BANGER_HOSTS_FILE="+hostsFile)
	return b, hostsFile
}

func (b *banger) dnsStatus() (s api.DNS) {
	b.t.Helper()
	if err := json.Unmarshal([]byte(b.ok("dns", "status", "--json")), &s); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// A daemon that was killed leaves lines of VMs that are gone since. The next one takes them
// away within a second of its start, and nobody else's.
func TestNamesOfADaemonThatWasKilled(t *testing.T) {
	const others = "127.0.0.1 localhost\n172.30.0.9\tx.vm\t# banger /another 0123456789ab\n"
	stale := "# begin of banger STATE: its VMs' names; bangerd keeps these lines\n" +
		"172.30.0.2\tweb.vm\t# banger STATE 0123456789ab\n# end of banger STATE\n"
	b, hosts := named(t, "dns_publish = \"hosts\"\ndns_listen = \"127.0.0.1:0\"\n", others+stale)
	b.ok("daemon", "start")
	limit := time.Now().Add(time.Second)
	for {
		text, err := os.ReadFile(hosts)
		if err != nil {
			t.Fatal(err)
		}
		if string(text) == others {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("a second after the start the hosts file is\n%s", text)
		}
	}
	s := b.dnsStatus()
	if s.Publisher != "hosts" || s.Problem != "" || s.Records != 0 || len(s.Listeners) != 1 || s.Listeners[0].For != "host" {
		t.Fatalf("its status: %+v", s)
	}
	for _, network := range []string{"udp", "tcp"} {
		for name, want := range map[string]int{"web.vm.": dns.RcodeNameError, "example.com.": dns.RcodeRefused} {
			c := dns.Client{Net: network}
			r, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), s.Listeners[0].Address)
			if err != nil || r.Rcode != want {
				t.Errorf("%s by %s: %v, %v", name, network, r, err)
			}
		}
	}
	b.killDaemon()
	if again := b.dnsStatus(); again.Listeners[0].Problem != "" { // of a daemon that was started for it
		t.Errorf("after a crash: %+v", again)
	}
	if out := b.ok("dns", "ls", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("names: %s", out)
	}
	b.ok("system", "census")
}

func TestBadNameConfig(t *testing.T) {
	for text, words := range map[string][]string{
		"dns_publish = \"mdns\"":      {`"mdns" is no way to publish names`, "resolved, hosts, exec or none"},
		"dns_exec = [\"mapdns\"]":     {"not an absolute path"},
		"dns_listen = \"0.0.0.0:53\"": {"no address of the loopback"},
	} {
		b, _ := named(t, text, "")
		b.refused(1, words, "dns", "status")
		config := filepath.Join(t.TempDir(), "none")
		b.env = append(b.env, "XDG_CONFIG_HOME="+config)
	}
}
