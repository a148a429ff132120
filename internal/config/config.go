// Package config owns where banger keeps things and what its config file says. Both
// programs read it, so that they agree without talking.
package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/errs"
)

// Config is what flags, the environment and the config file settle. Paths are absolute.
type Config struct {
	StateDir   string // mutable state; two state directories are two independent bangers
	Socket     string // the daemon's socket
	RuntimeDir string // the runtime bundle, or empty
	RepoRoot   string // a checkout that has it, or empty
	Runtime    Runtime
	Image      string // default image
	Kernel     string // default kernel
	DNS        DNS
	Bridge     string // name of the bridge, or empty
	Subnet     string // of the bridge, or empty

	Firecracker Firecracker

	TemplateBytes int64 // what templates may take of the disk; 0: VMs never start warm

	Pool      map[string]int // how many VMs of an image are kept ready, by its name
	PoolBytes int64          // what they may take of memory together

	Owner *Owner // whom root's daemon serves beside root, or nil
	// Mirrors are hosts that have what a registry has, and are asked first; by that one's host.
	Mirrors map[string][]string

	// Settings tell of every key where its value comes from.
	Settings []Setting
}

// Runtime is where packed runtime bundles come from.
type Runtime struct {
	URL string // or empty
	Key string // the minisign public key that one must be signed with, or empty
}

// Firecracker is what is settled for all VMs that Firecracker runs.
type Firecracker struct {
	DiskIO      string // sync or async
	CPUTemplate string // path of a file, or empty
}

// DNS is how the names of VMs are made known.
type DNS struct {
	Publish   string         // to the host's programs: auto, resolved, hosts, exec or none
	Exec      []string       // the command of exec, with its arguments
	Listen    netip.AddrPort // where the host is answered; invalid: nowhere
	HostsFile string         // that hosts edits
}

// Owner is a user of the host.
type Owner struct {
	Name     string
	UID, GID int
}

// Setting is the value of a key, as it is written, and its origin.
type Setting struct {
	Key    Key
	Value  []string // one, unless the key is of a list; none: there is no default
	Origin string   // for people: "default", "$BANGER_IMAGE", "--image", "/etc/banger/config.toml, line 3"
	inFile bool
}

// Text is the value for people.
func (s Setting) Text() string { return strings.Join(s.Value, " ") }

// DefaultPlaces tells whether nobody has said where state and socket are.
func (c Config) DefaultPlaces() bool {
	return c.Origin("state_dir") == byDefault && c.Origin("socket") == byDefault
}

// Origin tells where the value of the key of that name comes from.
func (c Config) Origin(name string) string {
	for _, s := range c.Settings {
		if s.Key.Name == name {
			return s.Origin
		}
	}
	return byDefault
}

// InFile tells whether the config file has set it.
func (s Setting) InFile() bool { return s.inFile }

// IsDefault tells whether nobody has set it.
func (s Setting) IsDefault() bool { return s.Origin == byDefault }

const byDefault = "default"

// defaultListen is where root's daemon answers the host: an address of the loopback's that
// other name servers leave alone.
const defaultListen = "127.0.0.153:53"

// SystemSocket is where the daemon that systemd starts for the whole host listens.
const SystemSocket = "/run/banger/bangerd.sock"

// Load settles the configuration for the user euid, whose environment getenv reads and who
// gave these flags, by their keys' names.
func Load(getenv func(string) string, euid int, flags map[string]string) (Config, error) {
	settings, path, err := readFile(getenv)
	if err != nil {
		return Config{}, err
	}
	inFile := map[string]setting{}
	for _, s := range settings {
		inFile[s.key.Name] = s
	}
	var c Config
	for _, k := range Keys {
		s := Setting{Key: k}
		var where string // of an error
		flag, byFlag := flags[k.Name]
		fromFile, byFile := inFile[k.Name]
		switch env := getenv(k.Env()); {
		case byFlag:
			s.Value, s.Origin = k.split(flag), "--"+k.Flag()
		case env != "":
			s.Value, s.Origin = k.split(env), "$"+k.Env()
		case byFile:
			s.inFile = true
			s.Value, s.Origin = fromFile.value, path+", line "+strconv.Itoa(fromFile.line)
			where = path + ", line " + strconv.Itoa(fromFile.line) + ", column " + strconv.Itoa(fromFile.col) + ": "
		default:
			s.Origin = byDefault
			if s.Value, err = c.byDefault(k.Name, getenv, euid); err != nil {
				return Config{}, err
			}
		}
		if s.Value, err = k.check(s.Value, where != ""); err == nil && len(s.Value) > 0 {
			err = k.set(&c, s.Value)
		}
		if err != nil {
			return Config{}, invalid(where, s.Origin, k, err)
		}
		c.Settings = append(c.Settings, s)
	}
	if c.DNS.Publish == "exec" && len(c.DNS.Exec) == 0 {
		return Config{}, errs.New(errs.Invalid, "dns_publish = \"exec\" needs a command").
			Try(`write dns_exec = ["/path/of/tool"]; it is run with set NAME IP and with del NAME IP`)
	}
	return c, nil
}

func invalid(where, origin string, k Key, err error) error {
	if where == "" {
		where = origin + ": "
	}
	e := errs.New(errs.Invalid, "%s%s", where, k.Name).Because(err).Try("write it as %s = %s", k.Name, k.Example)
	if h, ok := errors.AsType[hinted](err); ok {
		e = e.Try("%s", h.hint)
	}
	return e
}

// split reads a value out of a flag or the environment.
func (k Key) split(text string) []string {
	if k.list {
		return strings.Fields(text)
	}
	return []string{text}
}

// check refuses values that no key of that type has, and makes paths absolute.
func (k Key) check(v []string, inFile bool) ([]string, error) {
	if k.list || len(v) == 0 {
		return v, nil
	}
	if v[0] == "" && !k.empty {
		return nil, errors.New("it is empty")
	}
	if !k.path {
		return v, nil
	}
	if inFile && !filepath.IsAbs(v[0]) {
		return nil, errors.New("\"" + v[0] + "\" is not an absolute path")
	}
	path, err := filepath.Abs(v[0])
	return []string{path}, err
}

// byDefault is the value of a key that nobody has set. Keys before it are set already.
func (c *Config) byDefault(key string, getenv func(string) string, euid int) ([]string, error) {
	switch key {
	case "state_dir":
		dir, err := stateDir(getenv, euid)
		return []string{dir}, err
	case "socket":
		return []string{socket(getenv, euid, c.StateDir)}, nil
	case "image", "kernel":
		return []string{"debian"}, nil
	case "template_budget":
		return []string{"10G"}, nil // room for some eighty templates of Debian
	case "firecracker_disk_io":
		return []string{"sync"}, nil
	case "pool_memory":
		return []string{"1G"}, nil
	case "dns_publish":
		return []string{"auto"}, nil
	case "dns_listen":
		if euid == 0 {
			return []string{defaultListen}, nil
		}
	case "hosts_file":
		return []string{"/etc/hosts"}, nil
	}
	return nil, nil
}

// files lists where the config file may be. One that was named is the only one.
func files(getenv func(string) string) (paths []string, named bool) {
	if p := getenv("BANGER_CONFIG"); p != "" {
		return []string{p}, true
	}
	if d := getenv("XDG_CONFIG_HOME"); d != "" {
		paths = append(paths, filepath.Join(d, "banger", "config.toml"))
	} else if h := getenv("HOME"); h != "" {
		paths = append(paths, filepath.Join(h, ".config", "banger", "config.toml"))
	}
	return append(paths, "/etc/banger/config.toml"), false
}

// readFile reads the first config file there is; none at all is an empty one.
func readFile(getenv func(string) string) ([]setting, string, error) {
	paths, named := files(getenv)
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && !named {
			continue
		}
		if err != nil {
			return nil, path, errs.New(errs.Invalid, "read the config file").Because(err)
		}
		settings, err := parse(b)
		if err != nil {
			return nil, path, errs.New(errs.Invalid, "%s", path).Because(err).Try("%s", errs.HintOf(err))
		}
		return settings, path, nil
	}
	return nil, "", nil
}

func stateDir(getenv func(string) string, euid int) (string, error) {
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
	if d, err := stateDir(getenv, euid); err == nil && d == state && euid != 0 && filepath.IsAbs(getenv("XDG_RUNTIME_DIR")) {
		return filepath.Join(getenv("XDG_RUNTIME_DIR"), "banger", "bangerd.sock")
	}
	return filepath.Join(state, "bangerd.sock")
}
