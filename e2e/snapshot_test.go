package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
)

// counting is a program whose state is in memory only: it answers with a number that never repeats
// and always grows.
const counting = `i=0; mkfifo /run/ask /run/tell; (while read x </run/ask; do i=$((i+1)); echo $i >/run/tell; done) >/dev/null 2>&1 </dev/null &`

const count = "echo >/run/ask; cat /run/tell"

// What a guest has in its memory goes on: in VMs of a snapshot, in live copies, and in the VM itself
// after it was suspended and the daemon killed. Each copy is another machine.
func TestMemoryGoesOn(t *testing.T) { memoryGoesOn(t, newBanger(t), "--net", "none") }

func memoryGoesOn(t *testing.T, b *banger, flags ...string) {
	t.Helper()
	a := b.vm(flags...)
	b.ok("exec", a, "--", "sh", "-c", counting)
	next := func(name, want string) {
		t.Helper()
		if got := strings.TrimSpace(b.ok("exec", name, "--", "sh", "-c", count)); got != want {
			t.Errorf("%s counts to %q, not %s", name, got, want)
		}
	}
	next(a, "1")
	if got := b.ok("snapshot", a, "ready"); got != "ready\n" {
		t.Errorf("the snapshot is called %q", got)
	}
	if u := b.useOf("snapshot", "ready"); u.ExclusiveBytes < 10<<20 {
		t.Errorf("the ledger has of the snapshot %+v", u)
	}
	next(a, "2")
	b.ok("run", "-d", "--name", "later", "--from", "ready", "-e", "NEW=1")
	next("later", "2")
	copies := strings.Fields(b.ok("fork", "-n", "2", a))
	if len(copies) != 2 {
		t.Fatalf("the copies are %q", copies)
	}
	for _, c := range copies {
		next(c, "3")
	}
	b.ok("suspend", a, copies[0])
	if u := b.use(a); u.ExclusiveBytes < 10<<20 {
		t.Errorf("the ledger has of the suspended VM %+v", u)
	}
	b.killDaemon()
	if v := b.inspect(a); v.State != api.StateSuspended || v.PID != 0 {
		t.Errorf("suspended it is %+v", v)
	}
	b.refused(125, []string{"is suspended", "banger resume " + a}, "exec", a, "--", "true")
	b.ok("resume", a)
	next(a, "3")
	b.ok("start", copies[0]) // which is resume, too
	next(copies[0], "4")

	seen := map[string]string{}
	for _, name := range append([]string{a, "later"}, copies...) {
		is := b.ok("exec", name, "--", "sh", "-c", "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | md5sum")
		if lines := strings.Split(is, "\n"); lines[0] != name {
			t.Errorf("%s calls itself %s", name, lines[0])
		}
		for line := range strings.Lines(is) {
			if other, taken := seen[line]; taken {
				t.Errorf("%s and %s have the same %s", name, other, line)
			}
			seen[line] = name
		}
	}

	b.ok("create", "--name", "waits", "--from", "ready")
	b.refused(1, []string{"in use by", "waits"}, "snapshot", "rm", "ready")
	b.ok("snapshot", "prune", "-y")
	b.ok("start", "waits")
	next("waits", "2")
	b.ok("snapshot", "prune", "-y") // nothing needs it any more, those who went on from it included
	if left, err := os.ReadDir(filepath.Join(b.state, "templates")); err == nil && len(left) > 0 {
		t.Errorf("left is %v", left)
	}
	next("later", "3")
	b.ok("restart", "later", "waits")
	b.ok("rm", "-f", a, "later", "waits", copies[0], copies[1])
	if left, err := os.ReadDir(filepath.Join(b.state, "templates")); err == nil && len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}

// However long a chain of snapshots of VMs of snapshots gets, memory and disk go on, and no disk lies
// deeper than the first.
func TestSnapshotsTenDeep(t *testing.T) {
	if !*long {
		t.Skip("SKIP: it takes minutes; make test-long runs it")
	}
	b := newBanger(t)
	name := b.counter("--name", "generation-0")
	for i := 1; i <= 10; i++ {
		b.countsTo(name, strconv.Itoa(i))
		b.ok("exec", name, "--", "sh", "-c", fmt.Sprintf("echo %s >>/root/lines; sync", name))
		kept, next := fmt.Sprintf("kept-%d", i), fmt.Sprintf("generation-%d", i)
		b.ok("snapshot", name, kept)
		b.ok("run", "-d", "--name", next, "--from", kept)
		b.ok("stop", name)
		b.whole(name)
		b.ok("rm", name)
		b.ok("snapshot", "rm", kept)
		name = next
	}
	b.countsTo(name, "11")
	if got := b.ok("exec", name, "--", "cat", "/root/lines"); strings.Count(got, "generation-") != 10 {
		t.Errorf("its disk has %q", got)
	}
	if deep := b.inspect(name).Disk; deep.AllocatedBytes > 64<<20 {
		t.Errorf("its disk is %+v", deep)
	}
	b.ok("stop", name)
	b.whole(name)
}

// freePort finds a port of this host's that nobody is given who does not ask for it.
func freePort(t *testing.T) string {
	t.Helper()
	for {
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", 20000+rand.N(10000)))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
}

// A VM that is kept and forked has its connections still, and each copy has an address of its own
// and no other.
func TestConnectionsOutliveSnapshotAndFork(t *testing.T) {
	for _, mode := range []string{"bridge", "user"} {
		t.Run(mode, func(t *testing.T) {
			if mode == "bridge" && os.Geteuid() != 0 {
				t.Skip("SKIP: a bridge needs root")
			}
			b := newBanger(t)
			flags := []string{"--net", mode, "--memory", "128M"}
			address := ""
			if mode == "user" {
				address = freePort(t)
				flags = append(flags, "-p", address+":7777")
			}
			a := b.vm(flags...)
			b.ok("exec", a, "--", "sh", "-c", `mkfifo /run/heard; (nc -l -p 7777 </run/heard | cat >/run/heard) >/dev/null 2>&1 </dev/null &
				until grep -q ':1E61 ' /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done`) // 7777
			if mode == "bridge" {
				address = net.JoinHostPort(b.inspect(a).Network.IP, "7777")
			}
			conn, err := net.DialTimeout("tcp", address, 20*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			answers := bufio.NewReader(conn)
			say := func(text string) {
				t.Helper()
				if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
					t.Fatal(err)
				}
				_, err := io.WriteString(conn, text+"\n")
				got, heard := answers.ReadString('\n')
				if err != nil || heard != nil || got != text+"\n" {
					t.Fatalf("said %q and heard %q, %v, %v", text, got, err, heard)
				}
			}
			say("before")
			b.ok("snapshot", a, "kept")
			say("after it was kept")
			twin := strings.TrimSpace(b.ok("fork", a))
			say("after it was forked")
			if mode == "user" { // there all guests have the same
				return
			}
			got := strings.Fields(b.ok("exec", twin, "--", "sh", "-c", "ip -4 -o addr show eth0 | awk '{print $4}'"))
			if v := b.inspect(twin); len(got) != 1 || !strings.HasPrefix(got[0], v.Network.IP+"/") || v.Network.IP == b.inspect(a).Network.IP {
				t.Errorf("%s has %q, and should have %s alone", twin, got, v.Network.IP)
			}
			b.ok("exec", twin, "--", "ping", "-c", "1", "-W", "10", b.inspect(a).Network.IP)
		})
	}
}
