package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"banger/api"
)

// bridged returns a banger whose VMs are bridged.
func bridged(t *testing.T) *banger {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("SKIP: bridge networking takes root")
	}
	return newBanger(t)
}

// server has a VM say its name to whoever connects to its port.
func (b *banger) server(name, port string) {
	b.t.Helper()
	b.ok("exec", name, "--", "sh", "-c", "(while :; do echo 'I am "+name+"' | nc -l -p "+port+"; done) >/dev/null 2>&1 </dev/null &")
}

// says returns what is said at an address, or nothing if there is no answer in time.
func says(address string, limit time.Duration) string {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp4", address, limit)
		if err != nil {
			continue // nobody listens between two clients
		}
		conn.SetDeadline(time.Now().Add(limit))
		line, _ := bufio.NewReader(conn).ReadString('\n')
		conn.Close()
		if line != "" {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

const (
	patience = 20 * time.Second // for what is to work, on a busy machine
	refusal  = 2 * time.Second  // for what is not
)

// fetch has a VM get a page of the LAN's.
func (b *banger) fetch(name string) string {
	b.t.Helper()
	return b.run("", "exec", name, "--", "timeout", "10", "wget", "-q", "-O", "-", "http://"+webServer+"/").out
}

// hears tells what a VM gets to hear at an address.
func (b *banger) hears(name, ip, port, limit string) string {
	b.t.Helper()
	return strings.TrimSpace(b.run("", "exec", name, "--", "sh", "-c", "timeout "+limit+" nc "+ip+" "+port+" </dev/null").out)
}

func (b *banger) ip(name string) string {
	b.t.Helper()
	return b.inspect(name).Network.IP
}

func TestVMsOnTheBridge(t *testing.T) {
	b := bridged(t)
	a, other := b.vm("--name", "a", "-p", "18080:80"), b.vm("--name", "b")
	lonely := b.vm("--name", "lonely", "--isolated")
	for _, name := range []string{a, other, lonely} {
		b.server(name, "80")
	}
	if out := b.ok("ls"); !strings.Contains(out, b.ip(a)) || !strings.HasPrefix(b.ip(a), "10.") {
		t.Errorf("ls does not show %s:\n%s", b.ip(a), out)
	}
	t.Run("out", func(t *testing.T) {
		for _, name := range []string{a, lonely} {
			if got := b.fetch(name); got != "hello "+hostOnLAN {
				t.Errorf("from the LAN %s got %q", name, got)
			}
		}
	})
	t.Run("in", func(t *testing.T) {
		for _, name := range []string{a, other, lonely} {
			if got := says(b.ip(name)+":80", patience); got != "I am "+name {
				t.Errorf("%s says %q", name, got)
			}
		}
		if got := says("127.0.0.1:18080", patience); got != "I am a" {
			t.Errorf("the forwarded port says %q", got)
		}
		if got := says(hostOnLAN+":18080", refusal); got != "" {
			t.Errorf("it is forwarded from elsewhere: %q", got)
		}
	})
	t.Run("between", func(t *testing.T) {
		if got := b.hears(a, b.ip(other), "80", "10"); got != "I am b" {
			t.Errorf("b says %q to a", got)
		}
		if got := b.hears(a, b.ip(lonely), "80", "2"); got != "" {
			t.Errorf("an isolated VM says %q", got)
		}
		if got := b.hears(lonely, b.ip(other), "80", "2"); got != "" {
			t.Errorf("an isolated VM hears %q", got)
		}
	})
	t.Run("host", func(t *testing.T) {
		ln, err := net.Listen("tcp4", ":18090")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				io.WriteString(conn, "I am the host\n")
				conn.Close()
			}
		}()
		trusted := b.vm("--name", "trusted", "--host-access")
		defer func() { b.ok("rm", "-f", trusted) }()
		for _, address := range []string{hostOnLAN, b.network().Gateway} {
			if got := b.hears(a, address, "18090", "2"); got != "" {
				t.Errorf("the host says %q at %s", got, address)
			}
			if got := b.hears(trusted, address, "18090", "10"); got != "I am the host" {
				t.Errorf("to a trusted VM the host says %q at %s", got, address)
			}
		}
		b.ok("exec", a, "--", "ping", "-c", "1", "-W", "10", b.network().Gateway)
	})
	t.Run("names", func(t *testing.T) {
		eventually(t, "a resolves b", func() bool {
			return strings.Contains(b.run("", "exec", a, "--", "nslookup", "b.vm").out, b.ip(other))
		})
		if v := b.inspect(other); v.Network.DNS != "b.vm" {
			t.Errorf("b is known as %q", v.Network.DNS)
		}
	})
	t.Run("lies", func(t *testing.T) { b.lies(t, a, other) })
	t.Run("doctor", func(t *testing.T) {
		out := b.run("", "doctor").out
		for _, want := range []string{"ok       name of a VM", "ok       path to a VM", "ok       path out of a VM", "VMs are on the bridge banger0"} {
			if !strings.Contains(out, want) {
				t.Errorf("the doctor does not say %q:\n%s", want, out)
			}
		}
	})
	t.Run("daemon", func(t *testing.T) {
		b.killDaemon()
		if got := says(b.ip(a)+":80", patience); got != "I am a" {
			t.Errorf("after the daemon's end a says %q", got)
		}
		if got := says("127.0.0.1:18080", patience); got != "I am a" {
			t.Errorf("the forwarded port says %q", got)
		}
		if got := b.fetch(a); got != "hello "+hostOnLAN {
			t.Errorf("from the LAN came %q", got)
		}
	})
	t.Run("flush", func(t *testing.T) {
		flushRules(t)
		eventually(t, "the rules are there again", func() bool {
			return strings.Count(strings.Join(networkLeft(), "\n"), "table ") == 2
		})
		if got := b.fetch(a); got != "hello "+hostOnLAN {
			t.Errorf("after a flush from the LAN came %q", got)
		}
		if out := b.ok("events", "--no-follow"); !strings.Contains(out, "network: someone changed") {
			t.Errorf("events tell nothing:\n%s", out)
		}
	})
}

// lies has a VM claim to be someone else: of 20 echoes none comes back, and all when it
// says the truth again.
func (b *banger) lies(t *testing.T, name, other string) {
	mac, ip := b.inspect(name).Network.MAC, b.ip(name)
	bits := strings.SplitN(b.network().Subnet, "/", 2)[1]
	gateway, neighbour := b.network().Gateway, b.ip(other)
	ping := "ping -c 20 -i 0.1 -W 1 -q " + neighbour + " | grep -o '[0-9]* packets received' || ping -c 20 -i 0.1 -W 1 -q " + neighbour
	script := func(lie, truth string) string {
		return lie + "; " + ping + "; " + truth + "; ip route replace default via " + gateway
	}
	for _, tc := range []struct{ what, script, want string }{
		{"the truth", ping, "20 packets received"},
		{"another hardware address", script("ip link set eth0 address 02:99:99:99:99:99", "ip link set eth0 address "+mac), "0 packets received"},
		{"another address", script("ip addr add 10.123.0.9/"+bits+" dev eth0; ip addr del "+ip+"/"+bits+" dev eth0; ip route add "+neighbour+" dev eth0",
			"ip addr flush dev eth0; ip addr add "+ip+"/"+bits+" dev eth0"), "0 packets received"},
		{"the truth again", ping, "20 packets received"},
	} {
		if out := b.run("", "exec", name, "--", "sh", "-c", tc.script).out; strings.TrimSpace(out) != tc.want {
			t.Errorf("%s: %q", tc.what, out)
		}
	}
}

func (b *banger) network() (n api.NetworkInfo) {
	b.t.Helper()
	if err := json.Unmarshal([]byte(b.ok("network", "show", "--json")), &n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// flushRules is what another program may do to nftables at any time.
func flushRules(t *testing.T) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	conn.FlushRuleset()
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestMoveToAnotherSubnet(t *testing.T) {
	b := bridged(t)
	b.refused(1, []string{"nothing to move"}, "network", "move")
	if out := b.ok("network", "show", "--json"); strings.Contains(out, "null") {
		t.Errorf("without VMs the network is %s", out)
	}
	name := b.vm("--name", "a", "-p", "18081:80")
	b.server(name, "80")
	was := b.network()
	// A VPN comes, and takes our subnet.
	vpn, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer vpn.Close()
	if err := joinNamespace("vpn0", "203.0.113.1", vpn, "203.0.113.2"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if l, err := netlink.LinkByName("vpn0"); err == nil {
			netlink.LinkDel(l)
		}
	}()
	_, ours, err := net.ParseCIDR(was.Subnet)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: ours.IP, Mask: net.CIDRMask(21, 32)}, Gw: net.ParseIP("203.0.113.2")}); err != nil {
		if err = netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: ours.IP, Mask: net.CIDRMask(24, 32)}, Gw: net.ParseIP("203.0.113.2")}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "events tell of the overlap", func() bool {
		return strings.Contains(b.ok("events", "--no-follow"), "vpn0; to move it: banger network move")
	})
	if out := b.run("", "doctor").out; !strings.Contains(out, "vpn0") || !strings.Contains(out, "banger network move") {
		t.Errorf("the doctor does not tell:\n%s", out)
	}
	b.refused(1, []string{"overlaps", "vpn0"}, "network", "move", was.Subnet)
	for _, bad := range []string{"0.0.0.0/0", "10.0.0.0/30", "fd00::/64", "nonsense", "8.8.8.0/24"} {
		b.refused(1, []string{"subnet"}, "network", "move", bad)
	}
	b.ok("network", "move")
	now := b.network()
	if now.Subnet == was.Subnet || len(now.Leases) != 1 || now.Leases[0].IP == was.Leases[0].IP {
		t.Errorf("was %+v, is %+v", was, now)
	}
	if got := says(b.ip(name)+":80", patience); got != "I am a" {
		t.Errorf("at its new address it says %q", got)
	}
	if got := says("127.0.0.1:18081", patience); got != "I am a" {
		t.Errorf("the forwarded port says %q", got)
	}
	if got := b.fetch(name); got != "hello "+hostOnLAN {
		t.Errorf("from the LAN came %q", got)
	}
	b.ok("restart", name)
	if got := b.fetch(name); got != "hello "+hostOnLAN || b.ip(name) != now.Leases[0].IP {
		t.Errorf("after a restart it is at %s, and from the LAN came %q", b.ip(name), got)
	}
}

func TestPortsOfAUserNetwork(t *testing.T) {
	b := newBanger(t)
	name := b.vm("--name", "a", "--net", "user", "-p", "18082:80")
	b.server(name, "80")
	if got := says("127.0.0.1:18082", patience); got != "I am a" {
		t.Errorf("the forwarded port says %q", got)
	}
	b.server(name, "81")
	if out := b.ok("port", name, "--add", "18083:81"); !strings.Contains(out, "127.0.0.1:18083") {
		t.Errorf("port says %q", out)
	}
	if got := says("127.0.0.1:18083", patience); got != "I am a" {
		t.Errorf("the added port says %q", got)
	}
	b.killDaemon()
	if got := says("127.0.0.1:18083", patience); got != "I am a" {
		t.Errorf("after the daemon's end it says %q", got)
	}
	b.ok("port", name, "--rm", "18083:81")
	if got := says("127.0.0.1:18083", refusal); got != "" {
		t.Errorf("the removed port says %q", got)
	}
	taken, err := net.Listen("tcp4", "127.0.0.1:18084")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	b.refused(1, []string{"18084", "taken"}, "port", name, "--add", "18084:80")
	for _, bad := range []string{"0:80", "99999:80", "80:0", "x", "80"} {
		b.refused(1, []string{"no port to forward"}, "port", name, "--add", bad)
	}
	b.refused(1, []string{"80", "choose", "from 1024 on"}, "port", name, "--add", "80:80") // without a right to it
	b.refused(1, []string{"does not forward"}, "port", name, "--rm", "18099:80")
	b.refused(125, []string{"18084", "taken"}, "run", "-d", "--image", "tiny", "--net", "user", "-p", "18084:80")
	b.ok("stop", name)
	b.ok("start", name)
	b.server(name, "80")
	if got := says("127.0.0.1:18082", patience); got != "I am a" {
		t.Errorf("after stop and start the port says %q", got)
	}
}

func TestPortsOnTheBridge(t *testing.T) {
	b := bridged(t)
	name := b.vm("--name", "a")
	b.server(name, "80")
	taken, err := net.Listen("tcp4", "127.0.0.1:18084")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	b.refused(1, []string{"18084", "taken"}, "port", name, "--add", "18084:80")
	b.ok("port", name, "--add", "18085:80", "--add", "0.0.0.0:18086:80")
	for _, address := range []string{"127.0.0.1:18085", hostOnLAN + ":18086"} {
		if got := says(address, patience); got != "I am a" {
			t.Errorf("%s says %q", address, got)
		}
	}
	b.ok("port", name, "--rm", "0.0.0.0:18086:80")
	if got := says(hostOnLAN+":18086", refusal); got != "" {
		t.Errorf("the removed port says %q", got)
	}
	b.refused(125, []string{"18084", "taken"}, "run", "-d", "--image", "tiny", "-p", "18084:80")
	if out := b.ok("ls", "-aq"); out != "a\n" {
		t.Errorf("VMs: %q", out)
	}
}

// With no network at all a port is reached over the control channel.
func TestPortOverTheChannel(t *testing.T) {
	b := newBanger(t)
	name := b.vm("--name", "a", "--net", "none")
	b.server(name, "80")
	b.refused(1, []string{"without a network", "--forward"}, "port", name, "--add", "18087:80")
	c := b.command("port", name, "--forward", "18087:80")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if got := says("127.0.0.1:18087", patience); got != "I am a" {
		t.Errorf("it says %q", got)
	}
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); c.ProcessState.ExitCode() != 130 {
		t.Errorf("interrupted it ended with %v", err)
	}
}

// An address that is used again right away leads to the new VM only.
func TestAnAddressUsedAgain(t *testing.T) {
	b := bridged(t)
	home := t.TempDir()
	b.env = append(b.env, "XDG_CONFIG_HOME="+home)
	dir := home + "/banger"
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(dir+"/config.toml", []byte("subnet = \"10.201.0.0/29\"\nbridge = \"testbr\"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	keep := b.vm("--name", "keep")
	if n := b.network(); n.Subnet != "10.201.0.0/29" || n.Bridge != "testbr" {
		t.Errorf("the network is %+v", n)
	}
	for i := range 4 { // they take the rest of the subnet, and no machine
		b.ok("create", "--image", "tiny", "--name", fmt.Sprint("fill", i))
	}
	b.refused(1, []string{"full"}, "create", "--image", "tiny")
	b.ok("rm", "fill0")
	old := b.vm("--name", "old")
	ip, key := b.ip(old), b.inspect(old)
	b.server(old, "80")
	if got := says(ip+":80", patience); got != "I am old" {
		t.Errorf("it says %q", got)
	}
	b.ok("exec", keep, "--", "ping", "-c", "1", "-W", "10", ip)
	b.ok("rm", "-f", old)
	next := b.vm("--name", "next")
	b.server(next, "80")
	if b.ip(next) != ip || b.inspect(next).Network.MAC == key.Network.MAC {
		t.Errorf("next is at %s, old was at %s", b.ip(next), ip)
	}
	if got := says(ip+":80", patience); got != "I am next" {
		t.Errorf("it says %q", got)
	}
	if got := b.hears(keep, ip, "80", "10"); got != "I am next" {
		t.Errorf("to its neighbour it says %q", got)
	}
}

// Fifty VMs made at once have addresses of their own.
func TestFiftyAddressesAtOnce(t *testing.T) {
	b := bridged(t)
	b.ok("ls") // the daemon runs
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if r := b.run("", "create", "--image", "tiny", "--name", fmt.Sprint("vm", i)); r.code != 0 {
				t.Errorf("VM %d: %s", i, r.err)
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, l := range b.network().Leases {
		seen[l.IP], seen[l.MAC], seen[l.Name] = true, true, true
	}
	if len(seen) != 150 {
		t.Errorf("%d addresses, hardware addresses and names", len(seen))
	}
}

// What no network can do is refused in words.
func TestNetworksThatCantBeHad(t *testing.T) {
	b := newBanger(t)
	for _, args := range [][]string{{"--net", "cloud"}, {"--net", "user", "--isolated"}, {"--net", "none", "-p", "1:2"}, {"-p", "0:1"}, {"-p", "1:2:3:4"}, {"-p", "18088:1", "-p", "18088:2"}} {
		b.refused(1, []string{"banger: "}, append([]string{"create", "--image", "tiny"}, args...)...)
	}
}
