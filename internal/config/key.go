package config

import (
	"fmt"
	"net/netip"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"aead.dev/minisign"
	"github.com/docker/go-units"
)

// Key is one setting. In the file it has its name; the environment variable is BANGER_ and
// the name in capitals, the flag the name with dashes.
type Key struct {
	Name string
	// Doc tells what it settles, for people.
	Doc string
	// Example is a value, as it is written in the file.
	Example string
	// Daemon tells that the daemon reads it when it starts, the command line never.
	Daemon bool

	list  bool // its value is a list of strings
	path  bool // its value is a path, absolute where it is in the file
	empty bool // the empty string is a value
	set   func(*Config, []string) error
}

// Env is the key's environment variable.
func (k Key) Env() string { return "BANGER_" + strings.ToUpper(k.Name) }

// Flag is the key's flag, without dashes before it.
func (k Key) Flag() string { return strings.ReplaceAll(k.Name, "_", "-") }

// text makes a key of a string.
func text(to func(*Config) *string) func(*Config, []string) error {
	return func(c *Config, v []string) error {
		*to(c) = v[0]
		return nil
	}
}

// Keys are all settings, in the order of the documentation.
var Keys = []Key{
	{Name: "state_dir", Example: `"/var/lib/banger"`, path: true, set: text(func(c *Config) *string { return &c.StateDir }),
		Doc: "Where everything is kept that changes: VMs, their disks, images. Two of them are two bangers that know nothing of each other."},
	{Name: "socket", Example: `"/run/banger/bangerd.sock"`, path: true, set: text(func(c *Config) *string { return &c.Socket }),
		Doc: "The daemon's socket."},
	{Name: "runtime_dir", Example: `"/usr/local/lib/banger"`, path: true, Daemon: true, set: text(func(c *Config) *string { return &c.RuntimeDir }),
		Doc: "The runtime bundle: the kernels, images and programs that machines are started from."},
	{Name: "repo_root", Example: `"/home/me/src/banger"`, path: true, Daemon: true, set: text(func(c *Config) *string { return &c.RepoRoot }),
		Doc: "For old config files only: a checkout that has the runtime bundle in ./runtime. Write runtime_dir instead."},
	{Name: "runtime_url", Example: `"https://example.com/banger-runtime.tar.zst"`, Daemon: true, set: text(func(c *Config) *string { return &c.Runtime.URL }),
		Doc: "Where banger runtime fetch finds a packed bundle."},
	{Name: "runtime_key", Example: `"RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"`, Daemon: true, set: setRuntimeKey,
		Doc: "The minisign public key that a packed bundle must be signed with. Without one its SHA-256 has to do."},
	{Name: "image", Example: `"debian"`, Daemon: true, set: text(func(c *Config) *string { return &c.Image }),
		Doc: "The image of a VM for which none is named."},
	{Name: "kernel", Example: `"debian"`, Daemon: true, set: text(func(c *Config) *string { return &c.Kernel }),
		Doc: "The kernel of a VM for which none is named."},
	{Name: "owner", Example: `"me"`, Daemon: true, set: setOwner,
		Doc: "A user, by name or number, whom root's daemon serves like root. The socket is theirs, and nobody else's commands are heard."},
	{Name: "bridge", Example: `"banger0"`, Daemon: true, set: text(func(c *Config) *string { return &c.Bridge }),
		Doc: "The name of the bridge that root's VMs are on."},
	{Name: "subnet", Example: `"172.30.0.0/24"`, Daemon: true, set: text(func(c *Config) *string { return &c.Subnet }),
		Doc: "The subnet of the bridge. Without one a free one is looked for."},
	{Name: "template_budget", Example: `"10G"`, Daemon: true, set: setTemplateBudget,
		Doc: "How much of the disk the templates may take that VMs start warm from. With \"0\" none are made or used."},
	{Name: "pool", Example: `["debian=1"]`, list: true, Daemon: true, set: setPool,
		Doc: "How many VMs of which images are kept started and paused, for run and create to take at once where nothing is asked of the machine; banger pool ls tells how many are ready."},
	{Name: "pool_memory", Example: `"1G"`, Daemon: true, set: setPoolMemory,
		Doc: "How much memory the guests of such VMs may have together."},
	{Name: "firecracker_disk_io", Example: `"sync"`, Daemon: true, set: setDiskIO,
		Doc: "How Firecracker reads and writes disks: sync, one request after another, or async, many at a time by io_uring, which Firecracker calls a preview."},
	{Name: "firecracker_cpu_template", Example: `"/etc/banger/cpu.json"`, path: true, Daemon: true, set: text(func(c *Config) *string { return &c.Firecracker.CPUTemplate }),
		Doc: "A file with what CPU guests of Firecracker's see, as its documentation of custom CPU templates has it: to be the same on hosts that differ."},
	{Name: "dns_publish", Example: `"auto"`, Daemon: true, set: setPublish,
		Doc: "How the names of VMs are made known to the host's programs: auto, resolved, hosts, exec or none."},
	{Name: "dns_exec", Example: `["/usr/local/bin/publish-name"]`, list: true, Daemon: true, set: setExec,
		Doc: "The command of dns_publish = \"exec\" with its arguments; it is run with set NAME IP and with del NAME IP."},
	{Name: "dns_listen", Example: `"127.0.0.153:53"`, empty: true, Daemon: true, set: setListen,
		Doc: "Where root's daemon answers the host's questions for names: an address of the loopback's with a port, or \"\" for nowhere."},
	{Name: "hosts_file", Example: `"/etc/hosts"`, path: true, Daemon: true, set: text(func(c *Config) *string { return &c.DNS.HostsFile }),
		Doc: "The file that dns_publish = \"hosts\" edits."},
	{Name: "registry_mirrors", Example: `["docker.io=mirror.example:5000"]`, list: true, Daemon: true, set: setMirrors,
		Doc: "Hosts that are asked for container images before the registry that comes before the =."},
}

func setRuntimeKey(c *Config, v []string) error {
	var key minisign.PublicKey
	if err := key.UnmarshalText([]byte(v[0])); v[0] != "" && err != nil {
		return hinted{fmt.Errorf("%q is no public key of minisign", v[0]), "it is the second line of a .pub file; leave it out, and signatures are not asked for"}
	}
	c.Runtime.Key = v[0]
	return nil
}

func setPublish(c *Config, v []string) error {
	if ways := []string{"auto", "resolved", "hosts", "exec", "none"}; !slices.Contains(ways, v[0]) {
		return hinted{fmt.Errorf("%q is no way to publish names", v[0]), "choose auto, resolved, hosts, exec or none"}
	}
	c.DNS.Publish = v[0]
	return nil
}

func setExec(c *Config, v []string) error {
	if len(v) > 0 && !filepath.IsAbs(v[0]) {
		return hinted{fmt.Errorf("%q is not an absolute path", v[0]), "name the program by its whole path, and each argument by itself"}
	}
	c.DNS.Exec = v
	return nil
}

func setListen(c *Config, v []string) error {
	if c.DNS.Listen = (netip.AddrPort{}); v[0] == "" {
		return nil
	}
	listen, err := netip.ParseAddrPort(v[0])
	if err != nil || !listen.Addr().Is4() || !listen.Addr().IsLoopback() {
		return hinted{fmt.Errorf("%q is no address of the loopback's with a port", v[0]), `write "127.0.0.153:53", or "" to answer nowhere`}
	}
	c.DNS.Listen = listen
	return nil
}

func setMirrors(c *Config, v []string) error {
	c.Mirrors = map[string][]string{}
	for _, pair := range v {
		registry, mirror, ok := strings.Cut(pair, "=")
		if !ok || registry == "" || mirror == "" {
			return fmt.Errorf("%q is no registry and its mirror", pair)
		}
		c.Mirrors[registry] = append(c.Mirrors[registry], mirror)
	}
	return nil
}

func setTemplateBudget(c *Config, v []string) (err error) {
	c.TemplateBytes, err = units.RAMInBytes(v[0])
	if err != nil || c.TemplateBytes < 0 {
		return hinted{fmt.Errorf("%q is no size", v[0]), `write it as "10G" or "512M"; "0" does without templates`}
	}
	return nil
}

func setDiskIO(c *Config, v []string) error {
	if v[0] != "sync" && v[0] != "async" {
		return hinted{fmt.Errorf("%q is no way to read and write disks", v[0]), "choose sync or async"}
	}
	c.Firecracker.DiskIO = v[0]
	return nil
}

func setPool(c *Config, v []string) error {
	c.Pool = map[string]int{}
	for _, pair := range v {
		image, count, _ := strings.Cut(pair, "=")
		n, err := strconv.Atoi(count)
		if image == "" || err != nil || n < 1 || n > maxPool {
			return hinted{fmt.Errorf("%q is no image with a number of VMs", pair), fmt.Sprintf(`write it as "debian=1"; there may be %d of an image`, maxPool)}
		}
		c.Pool[image] = n
	}
	return nil
}

const maxPool = 100

func setPoolMemory(c *Config, v []string) (err error) {
	c.PoolBytes, err = units.RAMInBytes(v[0])
	if err != nil || c.PoolBytes < 0 {
		return hinted{fmt.Errorf("%q is no size", v[0]), `write it as "1G" or "512M"`}
	}
	return nil
}

func setOwner(c *Config, v []string) error {
	u, err := user.Lookup(v[0])
	if err != nil {
		u, err = user.LookupId(v[0])
	}
	if err != nil {
		return hinted{fmt.Errorf("there is no user %q", v[0]), "name one that the host knows, or leave owner out"}
	}
	c.Owner = &Owner{Name: u.Username}
	_, err = fmt.Sscan(u.Uid+" "+u.Gid, &c.Owner.UID, &c.Owner.GID)
	return err
}

// hinted is an error with what to do about it.
type hinted struct {
	error
	hint string
}

// nearest returns the key whose name is most like name, if one is like it at all.
func nearest(name string) string {
	best, least := "", len(name)/2+1
	for _, k := range Keys {
		if d := distance(name, k.Name); d < least {
			best, least = k.Name, d
		}
	}
	return best
}

// distance counts the letters to be put in, taken out or changed to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
