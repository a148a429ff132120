// Package config owns where banger keeps things and what its config file says. Both
// programs read it, so that they agree without talking.
package config

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"

	"banger/internal/errs"
)

// Config is what the environment and the config file settle. Paths are absolute.
type Config struct {
	StateDir   string // mutable state; two state directories are two independent bangers
	Socket     string // the daemon's socket
	RuntimeDir string // the config file's runtime_dir, or empty
	RepoRoot   string // the config file's repo_root, or empty
	Runtime    Runtime
	Image      string // default image
	Kernel     string // default kernel
	DNS        DNS
	Bridge     string // name of the bridge, or empty
	Subnet     string // of the bridge, or empty
}

// Runtime is where packed runtime bundles come from.
type Runtime struct {
	URL string // or empty
	Key string // the minisign public key that one must be signed with, or empty
}

// file is the config file. Unknown keys are errors.
type file struct {
	RuntimeDir string `toml:"runtime_dir"`
	RepoRoot   string `toml:"repo_root"`
	RuntimeURL string `toml:"runtime_url"`
	RuntimeKey string `toml:"runtime_key"`
	Image      string `toml:"image"`
	Kernel     string `toml:"kernel"`
	Bridge     string `toml:"bridge"`
	Subnet     string `toml:"subnet"`

	DNSPublish string   `toml:"dns_publish"`
	DNSExec    []string `toml:"dns_exec"`
	DNSListen  *string  `toml:"dns_listen"`
	HostsFile  string   `toml:"hosts_file"`
}

// Load settles the configuration for the user euid whose environment getenv reads.
func Load(getenv func(string) string, euid int) (Config, error) {
	c := Config{Image: "debian", Kernel: "debian"}
	f, path, err := readFile(candidates(getenv))
	if err != nil {
		return Config{}, err
	}
	c.Runtime = Runtime{URL: f.RuntimeURL, Key: f.RuntimeKey}
	c.Bridge, c.Subnet = f.Bridge, f.Subnet
	if f.Image != "" {
		c.Image = f.Image
	}
	if f.Kernel != "" {
		c.Kernel = f.Kernel
	}
	for _, p := range []struct {
		key, value string
		to         *string
	}{{"runtime_dir", f.RuntimeDir, &c.RuntimeDir}, {"repo_root", f.RepoRoot, &c.RepoRoot}} {
		if p.value != "" && !filepath.IsAbs(p.value) {
			return Config{}, errs.New(errs.Invalid, "%s: %s = %q is not an absolute path", path, p.key, p.value)
		}
		*p.to = p.value
	}
	if c.StateDir, err = stateDir(getenv, euid); err != nil {
		return Config{}, err
	}
	if c.DNS, err = dnsOf(f, getenv, euid); err != nil {
		return Config{}, errs.New(errs.Invalid, "%s", path).Because(err)
	}
	c.Socket = socket(getenv, euid, c.StateDir)
	if c.Socket, err = filepath.Abs(c.Socket); err != nil {
		return Config{}, err
	}
	return c, nil
}

func candidates(getenv func(string) string) []string {
	var paths []string
	if d := getenv("XDG_CONFIG_HOME"); d != "" {
		paths = append(paths, filepath.Join(d, "banger", "config.toml"))
	} else if h := getenv("HOME"); h != "" {
		paths = append(paths, filepath.Join(h, ".config", "banger", "config.toml"))
	}
	return append(paths, "/etc/banger/config.toml")
}

// readFile reads the first config file there is; none at all is an empty one.
func readFile(paths []string) (file, string, error) {
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return file{}, path, errs.New(errs.Invalid, "read the config file").Because(err)
		}
		f, err := parse(b)
		if err != nil {
			return file{}, path, errs.New(errs.Invalid, "%s", path).Because(err)
		}
		return f, path, nil
	}
	return file{}, "", nil
}

func parse(b []byte) (file, error) {
	var f file
	err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&f)
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		e := strict.Errors[0]
		line, _ := e.Position()
		key := ""
		for i, k := range e.Key() {
			if i > 0 {
				key += "."
			}
			key += k
		}
		return file{}, errs.New(errs.Invalid, "line %d: unknown key %q", line, key).
			Try("the keys are runtime_dir, repo_root, runtime_url, runtime_key, image, kernel, bridge, subnet, dns_publish, dns_exec, dns_listen and hosts_file")
	}
	return f, err
}

func stateDir(getenv func(string) string, euid int) (string, error) {
	if d := getenv("BANGER_STATE_DIR"); d != "" {
		return filepath.Abs(d)
	}
	if euid == 0 {
		return "/var/lib/banger", nil
	}
	if d := getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "banger"), nil
	}
	if h := getenv("HOME"); filepath.IsAbs(h) {
		return filepath.Join(h, ".local", "state", "banger"), nil
	}
	return "", errs.New(errs.Invalid, "no place for state: HOME is not set").Try("set BANGER_STATE_DIR")
}

// socket places the socket in the state directory, except that a user's default daemon
// listens in the directory that goes with the login.
func socket(getenv func(string) string, euid int, state string) string {
	if s := getenv("BANGER_SOCKET"); s != "" {
		return s
	}
	if d := getenv("XDG_RUNTIME_DIR"); euid != 0 && getenv("BANGER_STATE_DIR") == "" && filepath.IsAbs(d) {
		return filepath.Join(d, "banger", "bangerd.sock")
	}
	return filepath.Join(state, "bangerd.sock")
}
