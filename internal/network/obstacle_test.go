package network

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// obstacles gives what the doctor names, and the commands that it proposes.
func (w *world) obstacles() (text string, commands []string) {
	for _, o := range Obstacles(w.bridge.Status()) {
		text += o.What + "\n"
		_, after, _ := strings.Cut(o.Hint, "let them: ")
		commands = append(commands, strings.Split(after, "; ")...)
	}
	return text, commands
}

// run runs a command line in the tests' namespace, which this host must have the program for.
func (w *world) run(line string) {
	w.t.Helper()
	argv := strings.Fields(line)
	if _, err := exec.LookPath(argv[0]); err != nil {
		w.t.Skipf("SKIP: there is no %s here", argv[0])
	}
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// What Docker and others set up with either kind of iptables is named where it stops VMs, and
// what is proposed lets them by.
func TestDropsOfIptablesAreNamed(t *testing.T) {
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(program, func(t *testing.T) {
			w := newWorld(t)
			g := w.guest()
			w.reaches(g.ns, webServer+":80", "web to "+hostOnLAN)
			w.run(program + " -P FORWARD DROP")
			t.Cleanup(func() {
				w.run(program + " -P FORWARD ACCEPT")
				w.run(program + " -F")
			})
			w.blocked(g.ns, webServer+":80")
			text, commands := w.obstacles()
			if !strings.Contains(text, "iptables") && !strings.Contains(text, "the chain FORWARD of the nftables table ip filter drops") {
				t.Errorf("named is %q", text)
			}
			for _, c := range commands {
				w.run(strings.Replace(c, "iptables ", program+" ", 1)) // whichever this host calls so
			}
			w.reaches(g.ns, webServer+":80", "web to "+hostOnLAN)
		})
	}
}

// Docker's own rules, as its daemon makes them with iptables-nft.
func TestBesideDockersOwnRules(t *testing.T) {
	w := newWorld(t)
	const program = "iptables-nft"
	for _, rule := range []string{
		"-P FORWARD DROP", "-N DOCKER-USER", "-N DOCKER-ISOLATION-STAGE-1", "-N DOCKER",
		"-A DOCKER-USER -j RETURN", "-A DOCKER-ISOLATION-STAGE-1 -j RETURN",
		"-A FORWARD -j DOCKER-USER", "-A FORWARD -j DOCKER-ISOLATION-STAGE-1",
		"-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A FORWARD -o docker0 -j DOCKER",
		"-A FORWARD -i docker0 ! -o docker0 -j ACCEPT", "-A FORWARD -i docker0 -o docker0 -j ACCEPT",
	} {
		w.run(program + " " + rule)
	}
	t.Cleanup(func() {
		w.run(program + " -P FORWARD ACCEPT")
		w.run(program + " -F")
		w.run(program + " -X")
	})
	before := dump(t, program)
	a, b := w.guest(), w.guest()
	w.reaches(a.ns, webServer+":80", "web to "+hostOnLAN)
	w.reaches(a.ns, b.web(), "guest "+b.VM+" to "+a.Address.Addr().String())
	if text, _ := w.obstacles(); strings.Contains(text, "FORWARD") {
		t.Errorf("it is called an obstacle: %s", text)
	}
	if dump(t, program) == before {
		t.Error("iptables does not show our rules")
	}
	must(t, w.bridge.Restore(t.Context(), nil))
	w.nothingLeft()
	if after := dump(t, program); after != before {
		t.Errorf("Docker's rules were\n%s\nand are\n%s", before, after)
	}
}

func dump(t *testing.T, program string) string {
	t.Helper()
	out, err := exec.Command(program, "-S").Output()
	must(t, err)
	return string(out)
}

// The filters of a firewall that knows nothing of VMs.
func TestForeignDropsAreNamed(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	conn, err := nftables.New()
	must(t, err)
	for _, name := range []string{"mine", "firewalld"} {
		table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
		chain := conn.AddChain(&nftables.Chain{Name: "wall", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}})
		t.Cleanup(func() {
			conn.DelTable(table)
			must(t, conn.Flush())
		})
	}
	must(t, conn.Flush())
	w.blocked(g.ns, webServer+":80")
	text, commands := w.obstacles()
	for _, want := range []string{"the chain wall of the nftables table inet mine has rules that drop or reject", "inet firewalld"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	all := strings.Join(commands, "\n")
	for _, want := range []string{"nft insert rule inet mine wall iifname " + w.bridge.name + " accept", "nft insert rule inet mine wall oifname " + w.bridge.name + " accept", "firewall-cmd"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not proposed:\n%s", want, all)
		}
	}
}

// A host whose forwarding is off and locked has VMs that reach it and each other.
func TestForwardingThatIsLocked(t *testing.T) {
	w := newWorld(t)
	lock := forwardingPath("lan0")
	must(t, unix.Mount(lock, lock, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(lock, 0)) })
	must(t, unix.Mount("", lock, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	a, b := w.guest(), w.guest()
	w.reaches(a.ns, b.web(), "guest "+b.VM+" to "+a.Address.Addr().String())
	w.blocked(a.ns, webServer+":80")
	if problem := w.bridge.Status().Problem; !strings.Contains(problem, "IPv4 forwarding can't be set on lan0") {
		t.Errorf("the problem is %q", problem)
	}
}

func TestTheOldIptables(t *testing.T) {
	list := filepath.Join(t.TempDir(), "names")
	for text, want := range map[string]int{"": 0, "nat\n": 0, "nat\nfilter\n": 1} {
		must(t, os.WriteFile(list, []byte(text), 0o600))
		if got := oldTables("banger0", list); len(got) != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if got := oldTables("banger0", list+".none"); got != nil {
		t.Errorf("without a list: %v", got)
	}
}
