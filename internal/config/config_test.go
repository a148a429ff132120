package config

import (
	"os"
	"path/filepath"
	"reflect"
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
			c, err := Load(env(append(tc.env, "XDG_CONFIG_HOME", t.TempDir())...), tc.euid)
			if err != nil {
				t.Fatal(err)
			}
			if c.StateDir != tc.state || c.Socket != tc.socket {
				t.Errorf("got %s and %s, want %s and %s", c.StateDir, c.Socket, tc.state, tc.socket)
			}
		})
	}
	if _, err := Load(env("XDG_CONFIG_HOME", t.TempDir()), 1000); errs.HintOf(err) != "set BANGER_STATE_DIR" {
		t.Errorf("no HOME: got %v", err)
	}
}

func TestFile(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"image = \"tiny\"\nruntime_dir = \"/r\"", ""},
		{"imagee = \"tiny\"", `line 1: unknown key "imagee"`},
		{"[vm]\ncpus = 2", "unknown key"},
		{"image = 7", "cannot"},
		{"image = ", "toml"},
		{"runtime_dir = \"runtime\"", "not an absolute path"},
		{"\x00\xff", "toml"},
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "banger"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "banger", "config.toml"), []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(env("XDG_CONFIG_HOME", dir, "BANGER_STATE_DIR", "/s"), 0)
		switch {
		case tc.want == "" && (err != nil || c.Image != "tiny" || c.RuntimeDir != "/r" || c.Kernel != "debian"):
			t.Errorf("%q: got %+v, %v", tc.text, c, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%q: got %v, want it to say %q", tc.text, err, tc.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("image = \"tiny\""))
	f.Add([]byte("[a.b]\nc = 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := parse(b); err != nil && !reflect.DeepEqual(c, file{}) {
			t.Errorf("an error and a config: %+v, %v", c, err)
		}
	})
}
