package installed

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"banger/internal/network/networktest"
)

const (
	hostOnLAN = "198.51.100.1"
	webOnLAN  = "198.51.100.2"

	patience = 20 * time.Second // for what is to work: what others change is set right within 10 s
	refusal  = 2 * time.Second  // for what is not
)

// TestFirewalls has VMs beside others that filter packets, of Debian's packages and as those
// are after their installation: Docker and firewalld. Each works beside VMs and finds all as
// it was after them.
func TestFirewalls(t *testing.T) {
	onALab(t)
	haveBanger(t)
	haveLAN(t)
	t.Run("Docker", testDocker)
	t.Run("firewalld", testFirewalld)
	is(t, "", "nft list ruleset")
	is(t, "0", "sysctl -n net.ipv4.conf.lan0.forwarding")
}

// haveBanger has the newer package of banger installed, with a bundle, and no VMs.
func haveBanger(t *testing.T) {
	t.Helper()
	sh(t, `[ "$(dpkg-query -f '${Version}' -W banger 2>&1 || true)" = `+newer+` ] || dpkg --install /opt/banger/tests/banger_`+newer+`_amd64.deb`)
	sh(t, "[ -e /usr/lib/banger/bundle.json ] || cp -a --sparse=always /opt/banger/runtime/. /usr/lib/banger")
	sh(t, "systemctl start bangerd.socket; banger rm -f --all")
	t.Cleanup(func() { sh(t, "banger rm -f --all") }) // of a test that failed
}

// haveLAN gives the host a network with a web server, which tells each who asks.
func haveLAN(t *testing.T) {
	t.Helper()
	sh(t, "ip netns add lan; ip link add lan0 type veth peer name lan0p netns lan; ip addr add "+hostOnLAN+"/24 dev lan0; ip link set lan0 up")
	t.Cleanup(func() { sh(t, "ip link del lan0; ip netns del lan") })
	sh(t, "ip -n lan addr add "+webOnLAN+"/24 dev lan0p; ip -n lan link set lan0p up")
	lan, err := netns.GetFromName("lan")
	if err != nil {
		t.Fatal(err)
	}
	defer lan.Close()
	if err := networktest.In(lan, func() error { return greet(t, webOnLAN+":80") }); err != nil {
		t.Fatal(err)
	}
}

// greet has a server say hello to who asks.
func greet(t *testing.T, address string) error {
	ln, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	t.Cleanup(func() { ln.Close() })
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		io.WriteString(w, "hello "+from)
	}))
	return nil
}

// twoVMs has two VMs that say their names, and everything about them work.
func twoVMs(t *testing.T) {
	t.Helper()
	for _, name := range []string{"one", "two"} {
		sh(t, "banger run -d --image tiny --memory 96M --name "+name)
		sh(t, "banger exec "+name+" -- sh -c '(while :; do echo I am "+name+" | nc -l -p 80; done) >/dev/null 2>&1 </dev/null &'")
	}
	if err := greet(t, ":18090"); err != nil { // a service of the host's, which is none of the guests' business
		t.Fatal(err)
	}
	vmsWork(t, "at first")
	out, _ := try("banger doctor") // which may have something to say of other things
	for _, want := range []string{"ok       path to a VM", "ok       path out of a VM"} {
		if !strings.Contains(out, want) {
			t.Errorf("the doctor does not say %q:\n%s", want, out)
		}
	}
}

// vmsWork checks each way of a VM's, or its being closed, once others have done something.
func vmsWork(t *testing.T, after string) {
	t.Helper()
	one, two := inspect(t, "one").Network.IP, inspect(t, "two").Network.IP
	soon(t, after+": from the LAN a VM gets", "hello "+hostOnLAN, func() string { return get("one", webOnLAN) })
	soon(t, after+": to the host a VM says", "I am one", func() string { return says(one) })
	soon(t, after+": by its name it says", "I am one", func() string { return says("one.vm") })
	soon(t, after+": to another VM it says", "I am two", func() string {
		out, _ := try("banger exec one -- sh -c 'nc -w 5 " + two + " 80 </dev/null'")
		return out
	})
	if got := get("one", hostOnLAN+":18090"); got != "" {
		t.Errorf("%s: from a service of the host's a VM gets %q", after, got)
	}
	is(t, "", "banger system census")
}

// soon fails the test unless that is so in time.
func soon(t *testing.T, what, want string, look func() string) {
	t.Helper()
	got := look()
	for deadline := time.Now().Add(patience); got != want && time.Now().Before(deadline); got = look() {
	}
	if got != want {
		t.Errorf("%s %q, want %q", what, got, want)
	}
}

// get has a VM get a page; empty if there is none in time.
func get(vm, address string) string {
	out, _ := try("banger exec " + vm + " -- timeout 3 wget -q -O - http://" + address + "/")
	return out
}

// says is what a VM says on its port 80; empty if there is no answer in time.
func says(vm string) string {
	conn, err := net.DialTimeout("tcp4", vm+":80", refusal)
	if err != nil {
		return ""
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(refusal))
	line, _ := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line)
}

// Rules of Docker's and what it has set beside them.
const dockers = "iptables-save | grep -v '^#' | sed 's/\\[[0-9:]*\\]//' | sort; sysctl net.ipv4.ip_forward; docker ps --format '{{.Names}} {{.Ports}}'"

// fromDocker gets a page as a container does.
func fromDocker(address string) string {
	return "nsenter --net --target $(docker inspect --format '{{.State.Pid}}' neighbour) curl -sSf --max-time 3 http://" + address + "/"
}

// testDocker has Docker's containers and VMs be there together. Docker drops all that is
// forwarded and that it does not know.
func testDocker(t *testing.T) {
	sh(t, "modprobe br_netfilter; systemctl start docker") // that module passes frames between VMs by its rules
	t.Cleanup(func() {
		sh(t, "docker rm -f neighbour >/dev/null 2>&1 || true; docker rmi box >/dev/null; systemctl stop docker.socket docker containerd")
		// It leaves its rules to the next boot.
		sh(t, "nft flush ruleset; ip link del docker0; sysctl -q -w net.ipv4.ip_forward=0; modprobe -r br_netfilter")
	})
	is(t, "-P FORWARD DROP", "iptables -S FORWARD | head -n 1")
	sh(t, "tar -C / -c usr/bin/busybox | docker import - box")
	// The kernel has AppArmor on, and the lab none of its programs.
	sh(t, "docker run --security-opt apparmor=unconfined -d --name neighbour -p 18091:80 box /usr/bin/busybox httpd -f -p 80 -h /etc")
	address := sh(t, "docker inspect --format '{{.NetworkSettings.IPAddress}}' neighbour")
	containersWork := func() {
		t.Helper()
		is(t, "hello "+hostOnLAN, fromDocker(webOnLAN))
		is(t, "reached", "for at in "+address+" 127.0.0.1:18091; do curl -sSf --max-time 20 http://$at/hostname >/dev/null; done; echo reached")
	}
	containersWork()
	before := sh(t, dockers)

	twoVMs(t)
	containersWork()
	if out, err := try(fromDocker(inspect(t, "one").Network.IP)); err == nil {
		t.Errorf("a container reaches a VM, which says %q", out)
	}
	// Docker drops what it does not know only if it has switched forwarding on itself.
	sh(t, "nft flush ruleset; sysctl -q -w net.ipv4.ip_forward=0")
	vmsWork(t, "after a flush")
	sh(t, "systemctl restart docker; docker start neighbour")
	vmsWork(t, "after Docker has set up its rules again")
	containersWork()

	gone(t, func() {
		if after := sh(t, dockers); after != before {
			t.Errorf("Docker had\n%s\nand has\n%s", before, after)
		}
	})
}

// gone removes the VMs, and ends the daemon: others have to find all as it was after each.
func gone(t *testing.T, asItWas func()) {
	t.Helper()
	sh(t, "banger rm -f --all")
	is(t, "", "banger system census") // which has what is left to do done
	asItWas()
	sh(t, "systemctl stop bangerd.socket bangerd.service")
	asItWas()
	is(t, "", "ip -o link | grep -E 'banger|bgr' || true; nft list tables | grep banger || true; resolvectl domain | grep vm || true")
	sh(t, "systemctl start bangerd.socket")
}

// What firewalld lets by. (Of a zone that was ever used it keeps chains without rules.)
const firewallds = "firewall-cmd --list-all-zones; firewall-cmd --permanent --list-all-zones; nft list table inet firewalld | grep -E 'banger|bgr' || true"

// testFirewalld has firewalld, which rejects what comes by an interface that is in none of its
// zones, be there together with VMs.
func testFirewalld(t *testing.T) {
	sh(t, "systemctl start firewalld; firewall-cmd --state")
	t.Cleanup(func() { sh(t, "systemctl stop firewalld") })
	before := sh(t, firewallds)
	twoVMs(t)
	// After a flush it can't be reloaded, only restarted.
	for _, script := range []string{"firewall-cmd --reload", "nft flush ruleset", "systemctl restart firewalld"} {
		sh(t, script)
		vmsWork(t, "after "+script)
	}
	is(t, "trusted", "firewall-cmd --get-zone-of-interface=banger0")
	gone(t, func() {
		if after := sh(t, firewallds); after != before {
			t.Errorf("firewalld had\n%s\nand has\n%s", before, after)
		}
	})
}
