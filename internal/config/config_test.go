package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"banger/internal/errs"
)

func env(kv ...string) func(string) string {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return func(k string) string { return m[k] }
}

func TestPlaces(t *testing.T) {
	for _, tc := range []struct {
		name          string
		env           []string
		euid          int
		state, socket string
	}{
		{"root", nil, 0, "/var/lib/banger", "/var/lib/banger/bangerd.sock"},
		{"user", []string{"HOME", "/home/u"}, 1000, "/home/u/.local/state/banger", "/home/u/.local/state/banger/bangerd.sock"},
		{"login", []string{"HOME", "/home/u", "XDG_RUNTIME_DIR", "/run/user/1000"}, 1000,
			"/home/u/.local/state/banger", "/run/user/1000/banger/bangerd.sock"},
		{"xdg", []string{"XDG_STATE_HOME", "/s"}, 1000, "/s/banger", "/s/banger/bangerd.sock"},
		{"own state", []string{"BANGER_STATE_DIR", "/x", "XDG_RUNTIME_DIR", "/run/user/1000"}, 1000, "/x", "/x/bangerd.sock"},
		{"own socket", []string{"BANGER_STATE_DIR", "/x", "BANGER_SOCKET", "/y/s"}, 0, "/x", "/y/s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Load(env(append(tc.env, "XDG_CONFIG_HOME", t.TempDir())...), tc.euid, nil)
			if err != nil {
				t.Fatal(err)
			}
			if c.StateDir != tc.state || c.Socket != tc.socket {
				t.Errorf("got %s and %s, want %s and %s", c.StateDir, c.Socket, tc.state, tc.socket)
			}
		})
	}
	if _, err := Load(env("XDG_CONFIG_HOME", t.TempDir()), 1000, nil); errs.HintOf(err) != "set BANGER_STATE_DIR" {
		t.Errorf("no HOME: got %v", err)
	}
}

// fileWith makes a config file and returns the environment in which it is found.
func fileWith(t *testing.T, text string) (path string, getenv func(string) string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "banger", "config.toml")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, env("XDG_CONFIG_HOME", dir, "BANGER_STATE_DIR", "/s")
}

func TestFileIsRefused(t *testing.T) {
	for _, tc := range []struct{ text, want, hint string }{
		{"imagee = \"tiny\"", `line 1, column 1: unknown key "imagee"`, "did you mean image?"},
		{"\n  dns-listen = \"x\"", `line 2, column 3: unknown key "dns-listen"`, "did you mean dns_listen?"},
		{"image = \"tiny\"\nquux = 1", `line 2, column 1: unknown key "quux"`, "config example"},
		{"[vm]\ncpus = 2", "line 1, column 2: there is no table [vm]", "config example"},
		{"[pool]", "line 1, column 2: there is no table [pool]", "config example"},
		{`runtime_key = "RWQ"`, "line 1, column 1: runtime_key: \"RWQ\" is no public key of minisign", ".pub"},
		{"image.name = \"x\"", `line 1, column 1: unknown key "image.name"`, ""},
		{"image = 7", "line 1, column 1: image is a string, in quotes, not a number", `image = "debian"`},
		{"image = true", "not true or false", ""},
		{"image = [\"a\"]", "not a list", ""},
		{"dns_exec = \"/bin/tool set\"", "dns_exec is a list of strings, not a string", "dns_exec = ["},
		{"registry_mirrors = [\"docker.io\"]", "no registry and its mirror", "registry_mirrors = ["},
		{"dns_exec = [1]", "a list of strings, not a list", ""},
		{"kernel = \"a\"\nimage = ", "line 2, column ", "toml.io"},
		{"image = \"a\"\nimage = \"b\"", "line 2, column 1", ""},
		{"runtime_dir = \"runtime\"", "not an absolute path", ""},
		{"image = \"\"", "line 1, column 1: image: it is empty", ""},
		{"\x00\xff", "line 1", ""},
		{"dns_publish = \"mdns\"", `"mdns" is no way to publish names`, "choose auto"},
		{"dns_publish = \"exec\"", "needs a command", "dns_exec"},
		{"dns_exec = [\"tool\"]", "not an absolute path", "whole path"},
		{"hosts_file = \"hosts\"", "not an absolute path", ""},
		{"dns_listen = \"53\"", "no address of the loopback", "127.0.0.153"},
		{"dns_listen = \"0.0.0.0:53\"", "no address of the loopback", ""},
		{"dns_listen = \"192.0.2.1:53\"", "no address of the loopback", ""},
		{"owner = \"no such user\"", "there is no user", ""},
	} {
		path, getenv := fileWith(t, tc.text)
		_, err := Load(getenv, 0, nil)
		if errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), tc.want) || !strings.Contains(errs.HintOf(err), tc.hint) || errs.HintOf(err) == "" {
			t.Errorf("%q: got %v (hint %q), want it to say %q (%q)", tc.text, err, errs.HintOf(err), tc.want, tc.hint)
		} else if !strings.Contains(err.Error(), path) && !strings.Contains(tc.text, `"exec"`) {
			t.Errorf("%q: %v does not name the file", tc.text, err)
		}
	}
}

func TestOrigins(t *testing.T) {
	path, fromFile := fileWith(t, "image = \"tiny\"\n# a comment\nkernel = \"k\"\ndns_exec = [\"/bin/x\", \"a b\"]\n")
	getenv := func(k string) string {
		return map[string]string{"BANGER_KERNEL": "k2", "BANGER_SUBNET": "10.0.0.0/24", "BANGER_BRIDGE": ""}[k] + fromFile(k)
	}
	c, err := Load(getenv, 0, map[string]string{"subnet": "10.1.0.0/24", "dns_listen": ""})
	if err != nil {
		t.Fatal(err)
	}
	if c.Image != "tiny" || c.Kernel != "k2" || c.Subnet != "10.1.0.0/24" || c.Bridge != "" || c.DNS.Listen.IsValid() || !reflect.DeepEqual(c.DNS.Exec, []string{"/bin/x", "a b"}) {
		t.Errorf("got %+v", c)
	}
	for key, want := range map[string]string{
		"image": path + ", line 1", "kernel": "$BANGER_KERNEL", "subnet": "--subnet", "dns_listen": "--dns-listen", "bridge": "default",
		"state_dir": "$BANGER_STATE_DIR", "dns_publish": "default", "dns_exec": path + ", line 4",
	} {
		if got := c.Origin(key); got != want {
			t.Errorf("%s comes from %s, want %s", key, got, want)
		}
	}
	if len(c.Settings) != len(Keys) {
		t.Errorf("%d settings of %d keys", len(c.Settings), len(Keys))
	}
	if _, err := Load(env("HOME", "/h"), 1000, map[string]string{"image": ""}); err == nil || !strings.Contains(err.Error(), "--image: image: it is empty") {
		t.Errorf("an empty flag: %v", err)
	}
	// One that was named is the only one, and must be there.
	if _, err := Load(env("HOME", "/h", "BANGER_CONFIG", path+"x"), 1000, nil); errs.KindOf(err) != errs.Invalid {
		t.Errorf("a named file that is not there: %v", err)
	}
	if c, err := Load(env("HOME", "/h", "BANGER_CONFIG", path), 1000, nil); err != nil || c.Image != "tiny" {
		t.Errorf("a named file: %+v, %v", c, err)
	}
}

func TestDefaults(t *testing.T) {
	for euid, listen := range map[int]string{0: defaultListen, 1000: "invalid AddrPort"} {
		c, err := Load(env("HOME", "/h", "XDG_CONFIG_HOME", t.TempDir()), euid, nil)
		if err != nil || c.DNS.Listen.String() != listen || c.DNS.Publish != "auto" || c.DNS.HostsFile != "/etc/hosts" || c.Image != "debian" || c.Kernel != "debian" || c.Owner != nil {
			t.Errorf("user %d: %+v, %v", euid, c, err)
		}
	}
}

// The example is a config file, also with all its keys.
func TestExample(t *testing.T) {
	text := string(Example())
	if s, err := parse([]byte(text)); err != nil || len(s) != 0 {
		t.Errorf("as it is: %v, %v", s, err)
	}
	all := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(text, "$1")
	all = strings.Replace(all, `owner = "me"`, `owner = "root"`, 1)
	s, err := parse([]byte(all))
	if err != nil || len(s) != len(Keys) {
		t.Fatalf("with all keys: %d of %d, %v", len(s), len(Keys), err)
	}
	_, getenv := fileWith(t, all)
	if _, err := Load(getenv, 0, nil); err != nil {
		t.Errorf("its values: %v", err)
	}
}

func TestOwner(t *testing.T) {
	_, getenv := fileWith(t, `owner = "0"`)
	if c, err := Load(getenv, 0, nil); err != nil || c.Owner == nil || c.Owner.Name != "root" || c.Owner.UID != 0 {
		t.Errorf("got %+v, %v", c.Owner, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("image = \"tiny\""))
	f.Add([]byte("[a.b]\nc = 1"))
	f.Add([]byte("dns_exec = [\"/a\", # why\n \"b\"]\nimage.x = 1\n\"image\" = 'y'"))
	f.Add(Example())
	f.Fuzz(func(t *testing.T, b []byte) {
		settings, err := parse(b)
		if err != nil && settings != nil {
			t.Errorf("an error and settings: %+v, %v", settings, err)
		}
		for _, s := range settings {
			if s.line < 1 || s.col < 1 || !s.key.list && len(s.value) != 1 {
				t.Errorf("%+v", s)
			}
		}
	})
}

func TestMirrors(t *testing.T) {
	_, getenv := fileWith(t, "registry_mirrors = [\"docker.io=a\", \"docker.io=b:5000\", \"x=c\"]\n")
	c, err := Load(getenv, 0, nil)
	if err != nil || !reflect.DeepEqual(c.Mirrors, map[string][]string{"docker.io": {"a", "b:5000"}, "x": {"c"}}) {
		t.Errorf("got %v, %v", c.Mirrors, err)
	}
}

func TestFirecracker(t *testing.T) {
	path, getenv := fileWith(t, "firecracker_disk_io = \"async\"\nfirecracker_cpu_template = \"/etc/cpu.json\"\n")
	c, err := Load(getenv, 0, nil)
	if err != nil || c.Firecracker != (Firecracker{DiskIO: "async", CPUTemplate: "/etc/cpu.json"}) {
		t.Errorf("%s: got %+v, %v", path, c.Firecracker, err)
	}
	_, getenv = fileWith(t, "firecracker_disk_io = \"fast\"\n")
	if _, err := Load(getenv, 0, nil); errs.KindOf(err) != errs.Invalid || !strings.Contains(errs.HintOf(err), "sync or async") {
		t.Errorf("got %v, %s", err, errs.HintOf(err))
	}
}
