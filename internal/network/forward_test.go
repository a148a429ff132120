package network

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/errs"
	"banger/internal/network/networktest"
)

func TestParseForward(t *testing.T) {
	for text, want := range map[string]string{
		"8080:80": "127.0.0.1:8080:80", "0.0.0.0:1:65535": "0.0.0.0:1:65535", "53:53/udp": "127.0.0.1:53:53/udp", "10.0.0.1:2:3/tcp": "10.0.0.1:2:3",
	} {
		f, err := ParseForward(text)
		if err != nil || f.String() != want {
			t.Errorf("%q: %v, %v", text, f, err)
		}
		if again, err := ParseForward(f.String()); err != nil || again != f {
			t.Errorf("%q does not come back: %v, %v", f, again, err)
		}
	}
	for _, bad := range []string{"", "80", ":", "0:80", "80:0", "99999:80", "80:65536", "-1:80", "+1:80", "080:80", "a:80", "1:2:3", "::1:1:2", "[::1]:1:2",
		"1.2.3:1:2", "localhost:1:2", "1:2/sctp", "1:2/", "1:2/UDP", "1:2:3:4", "1: 2", "1:2\n", "1:2/udp/udp"} {
		if f, err := ParseForward(bad); errs.KindOf(err) != errs.Invalid || errs.HintOf(err) == "" {
			t.Errorf("%q: %v, %v", bad, f, err)
		}
	}
}

func FuzzParseForward(f *testing.F) {
	f.Add("1.2.3.4:80:90/udp")
	f.Fuzz(func(t *testing.T, text string) {
		fwd, err := ParseForward(text)
		if err != nil {
			return
		}
		if again, err := ParseForward(fwd.String()); err != nil || again != fwd {
			t.Errorf("%q gives %v, which gives %v, %v", text, fwd, again, err)
		}
	})
}

func forward(t *testing.T, text string) Forward {
	t.Helper()
	f, err := ParseForward(text)
	must(t, err)
	return f
}

func TestForwardsOnTheBridge(t *testing.T) {
	w := newWorld(t)
	here := w.here()
	web, echo := forward(t, "8081:80"), forward(t, "8082:7/udp")
	g := w.guest(func(p *Port) { p.Forwards = []Forward{web} })
	w.reaches(here, "127.0.0.1:8081", "guest "+g.VM+" to "+Gateway(w.subnet).String())
	w.blocked(here, hostOnLAN+":8081") // loopback by default

	w.echo(g)
	must(t, w.bridge.Forward(t.Context(), g.VM, []Forward{web, echo}))
	for range 2 { // two clients at once have an answer each
		c, err := net.Dial("udp4", "127.0.0.1:8082")
		must(t, err)
		defer c.Close()
		for i := range 3 {
			word := fmt.Sprint("word ", i)
			got := make([]byte, 100)
			_, err := c.Write([]byte(word))
			must(t, err)
			must(t, c.SetReadDeadline(time.Now().Add(patience)))
			n, err := c.Read(got)
			if err != nil || string(got[:n]) != word {
				t.Errorf("got %q, %v", got[:n], err)
			}
		}
	}

	other := w.guest()
	if err := w.bridge.Forward(t.Context(), other.VM, []Forward{forward(t, "8083:80"), web}); errs.KindOf(err) != errs.Conflict || errs.HintOf(err) == "" {
		t.Errorf("a port that is taken: %v", err)
	}
	w.blocked(here, "127.0.0.1:8083") // neither of them is open then
	if err := w.bridge.Forward(t.Context(), other.VM, []Forward{forward(t, "203.0.113.99:8083:80")}); errs.KindOf(err) != errs.Invalid {
		t.Errorf("an address of another host: %v", err)
	}

	must(t, w.bridge.Forward(t.Context(), g.VM, nil))
	w.blocked(here, "127.0.0.1:8081")
	must(t, w.bridge.Forward(t.Context(), other.VM, []Forward{web}))
	w.reaches(here, "127.0.0.1:8081", "guest "+other.VM+" to "+Gateway(w.subnet).String())
	must(t, w.bridge.Detach(t.Context(), other.VM))
	w.blocked(here, "127.0.0.1:8081")
}

// A port that takes a right which the daemon does not have is refused with what to do.
func TestAPrivilegedPort(t *testing.T) {
	newWorld(t) // or skips
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), helper+"=listen")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "tcp port 127.0.0.1:80 of this host is for privileged programs only; choose one from 1024 on") {
		t.Errorf("%v: %s", err, out)
	}
}

// echo answers datagrams to the guest's port 7.
func (w *world) echo(g *guest) {
	w.t.Helper()
	var conn net.PacketConn
	must(w.t, networktest.In(g.ns, func() (err error) {
		conn, err = net.ListenPacket("udp4", ":7")
		return err
	}))
	w.t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 1000)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			conn.WriteTo(b[:n], from)
		}
	}()
}
