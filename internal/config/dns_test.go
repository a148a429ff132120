package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"banger/internal/errs"
)

func TestDNS(t *testing.T) {
	for _, tc := range []struct {
		text string
		euid int
		want DNS
		err  string
	}{
		{"", 0, DNS{Publish: "auto", HostsFile: "/etc/hosts", Listen: defaultListen}, ""},
		{"", 1000, DNS{Publish: "auto", HostsFile: "/etc/hosts"}, ""},
		{"dns_listen = \"\"\ndns_publish = \"none\"\nhosts_file = \"/h\"", 0, DNS{Publish: "none", HostsFile: "/h"}, ""},
		{"dns_exec = [\"/bin/tool\", \"-v\"]", 1000, DNS{Publish: "auto", Exec: []string{"/bin/tool", "-v"}, HostsFile: "/etc/hosts"}, ""},
		{"dns_publish = \"mdns\"", 0, DNS{}, `"mdns" is no way to publish names`},
		{"dns_publish = \"exec\"", 0, DNS{}, "needs a command"},
		{"dns_exec = [\"tool\"]", 0, DNS{}, "not an absolute path"},
		{"dns_exec = \"/bin/tool set\"", 0, DNS{}, "toml"},
		{"hosts_file = \"hosts\"", 0, DNS{}, "not an absolute path"},
		{"dns_listen = \"53\"", 0, DNS{}, "no address of the loopback"},
		{"dns_listen = \"0.0.0.0:53\"", 0, DNS{}, "no address of the loopback"},
		{"dns_listen = \"192.0.2.1:53\"", 0, DNS{}, "no address of the loopback"},
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "banger"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "banger", "config.toml"), []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(env("XDG_CONFIG_HOME", dir, "BANGER_STATE_DIR", "/s"), tc.euid)
		switch {
		case tc.err == "" && (err != nil || !reflect.DeepEqual(c.DNS, tc.want)):
			t.Errorf("%q: got %+v, %v", tc.text, c.DNS, err)
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err) || !strings.Contains(err.Error(), dir)):
			t.Errorf("%q: got %v, want it to say %q", tc.text, err, tc.err)
		case strings.Contains(tc.err, "loopback") && errs.HintOf(err) == "":
			t.Errorf("%q: no hint", tc.text)
		}
	}
	c, err := Load(env("XDG_CONFIG_HOME", t.TempDir(), "BANGER_STATE_DIR", "/s", "BANGER_HOSTS_FILE", "/x"), 0)
	if err != nil || c.DNS.HostsFile != "/x" {
		t.Errorf("from the environment: %+v, %v", c.DNS, err)
	}
}
