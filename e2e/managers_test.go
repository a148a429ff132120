package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An image with all that Debian has to configure networks with. Which of it is in charge each
// VM settles for itself.
const managersImage = `name = "managers"
distribution = "debian"
release = "bookworm"
variant = "minbase"
packages = ["systemd-sysv", "dbus", "udev", "kmod", "netbase", "iproute2", "iputils-ping",
  "ifupdown", "isc-dhcp-client", "network-manager", "systemd-resolved"]
size = "4G"
init = "/sbin/init"
[[file]]
path = "/etc/hostname"
content = "localhost\n"
[[file]]
path = "/etc/hosts"
content = "127.0.0.1 localhost\n"
[[file]]
path = "/etc/machine-id"
[[file]]
path = "/etc/fstab"
`

// manager is what an image may have to configure its network with, told to do that otherwise
// than banger does.
type manager struct {
	name  string
	units string // to be in charge
	setup string // a script that has it want something else
	stub  bool   // systemd-resolved answers for it
}

const (
	// A file, as an image without systemd-resolved has.
	plainResolver = "rm -f /etc/resolv.conf; echo nameserver 192.0.2.53 >/etc/resolv.conf; "
	stubResolver  = "ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf; "

	networkdDHCP = `printf '[Match]\nName=e*\n[Network]\nDHCP=yes\n' >/etc/systemd/network/10-all.network`
	ifupdownDHCP = `printf 'auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n' >/etc/network/interfaces`
	ifupdownElse = `printf 'auto lo\niface lo inet loopback\nallow-hotplug eth0\niface eth0 inet static\n address 192.0.2.9/24\n gateway 192.0.2.1\n' >/etc/network/interfaces`
	managerDHCP  = `printf '[connection]\nid=all\ntype=ethernet\nautoconnect=true\n[ipv4]\nmethod=auto\n' >/etc/NetworkManager/system-connections/all.nmconnection; chmod 600 /etc/NetworkManager/system-connections/*`
)

var managers = []manager{
	{"NetworkManager", "NetworkManager", plainResolver + managerDHCP, false},
	{"NetworkManager with systemd-resolved", "NetworkManager systemd-resolved", stubResolver + managerDHCP, true},
	{"ifupdown by DHCP", "networking", plainResolver + ifupdownDHCP, false},
	{"ifupdown with another address", "networking", plainResolver + ifupdownElse, false},
	{"systemd-networkd", "systemd-networkd", plainResolver + networkdDHCP, false},
	{"systemd-networkd with systemd-resolved", "systemd-networkd systemd-resolved", stubResolver + networkdDHCP, true},
}

// Whatever an image has to configure its network with leaves it as the agent has set it: at
// boot, when it is restarted, and after the machine has gone on somewhere else.
func TestImagesWithNetworkManagers(t *testing.T) {
	if !*long {
		t.Skip("SKIP: it takes minutes; make test-long runs it")
	}
	b := bridged(t)
	manifest := filepath.Join(t.TempDir(), "managers.toml")
	if err := os.WriteFile(manifest, []byte(managersImage), 0o600); err != nil {
		t.Fatal(err)
	}
	b.outside("image", "build", "managers", "-f", manifest)
	b.outside("daemon", "stop")
	for i, m := range managers {
		t.Run(m.name, func(t *testing.T) {
			b := *b
			b.t = t
			b.managed(m, fmt.Sprint("m", i))
		})
	}
}

func (b *banger) managed(m manager, name string) {
	sh := func(vm, script string) string {
		b.t.Helper()
		return strings.TrimSpace(b.ok("exec", vm, "--", "sh", "-euc", script))
	}
	right := func(vm, when string) {
		b.t.Helper()
		v, n := b.inspect(vm), b.network()
		_, bits, _ := strings.Cut(n.Subnet, "/")
		resolver := "nameserver " + n.Gateway
		if m.stub {
			resolver = "nameserver 127.0.0.53"
		}
		for _, is := range []struct{ what, script, want string }{
			{"addresses", "ip -4 -o addr show dev eth0 | awk '{print $4}'", v.Network.IP + "/" + bits},
			{"default routes", "ip -4 route show default | awk '{print $3, $5}'", n.Gateway + " eth0"},
			{"name servers", "grep ^nameserver /etc/resolv.conf", resolver},
			{"its name", "getent ahostsv4 " + vm + ".vm | awk '{print $1; exit}'", v.Network.IP},
			{"the LAN", "ping -c 1 -W 10 " + webServer + " >/dev/null && echo there", "there"},
			{"units that failed", "systemctl --failed --plain --no-legend", ""},
			{"in charge", "systemctl is-active " + m.units + " | sort -u", "active"},
		} {
			if got := sh(vm, is.script+" || true"); got != is.want {
				b.t.Errorf("%s: %s: %q, want %q", when, is.what, got, is.want)
			}
		}
	}
	b.ok("run", "-d", "--name", name, "--image", "managers", "--memory", "384M")
	sh(name, "systemctl disable -q NetworkManager networking systemd-networkd systemd-resolved; systemctl enable -q "+m.units+"; "+m.setup)
	b.ok("restart", name)
	right(name, "at boot")
	sh(name, "systemctl restart "+m.units)
	right(name, "after a restart of "+m.units)
	b.ok("suspend", name)
	b.ok("resume", name)
	right(name, "after it was suspended")
	b.ok("snapshot", name, name+"-kept")
	b.ok("run", "-d", "--name", name+"-copy", "--from", name+"-kept")
	right(name+"-copy", "as a copy")
	sh(name+"-copy", "systemctl restart "+m.units)
	right(name+"-copy", "as a copy, after a restart of "+m.units)
	b.ok("rm", "-f", name, name+"-copy")
	b.ok("snapshot", "rm", name+"-kept")
}
