package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestKernelsComeAndGo(t *testing.T) {
	b := newBanger(t)
	kernel := filepath.Join(os.Getenv("BANGER_RUNTIME_DIR"), "kernels", "debian")
	var known struct{ Version string }
	raw, err := os.ReadFile(filepath.Join(kernel, "kernel.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &known); err != nil {
		t.Fatal(err)
	}
	modules := filepath.Join(t.TempDir(), known.Version)
	if err := os.Mkdir(modules, 0o755); err != nil {
		t.Fatal(err)
	}
	dump := exec.Command("debugfs", "-R", "rdump / "+modules, filepath.Join(kernel, "modules.ext4"))
	dump.Env = append(os.Environ(), "PATH=/usr/sbin:/sbin:"+os.Getenv("PATH"))
	if out, err := dump.CombinedOutput(); err != nil {
		t.Skipf("SKIP: debugfs can't unpack the modules: %v\n%s", err, out)
	}
	if err := os.RemoveAll(filepath.Join(modules, "lost+found")); err != nil {
		t.Fatal(err)
	}
	b.ok("kernel", "import", filepath.Join(kernel, "vmlinux"), "--name", "mine", "--modules", modules)
	if out := b.ok("kernel", "ls"); !strings.Contains(out, "mine") || !strings.Contains(out, known.Version) {
		t.Errorf("kernel ls: %s", out)
	}
	if r := b.run("", "run", "--rm", "--image", "tiny", "--kernel", "mine", "--", "uname", "-r"); r.code != 0 || r.out != known.Version+"\n" {
		t.Errorf("a VM with it: %+v", r)
	}
	b.refused(1, []string{"already"}, "kernel", "import", filepath.Join(kernel, "vmlinux"), "--name", "mine")
	b.ok("kernel", "rm", "mine")
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("no kernel ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	b.refused(1, []string{"garbage"}, "kernel", "import", garbage, "--name", "bad")
	b.refused(1, []string{"no such file"}, "kernel", "import", garbage+".gone", "--name", "bad")
	if out := b.ok("kernel", "ls"); strings.Contains(out, "mine") || strings.Contains(out, "bad") {
		t.Errorf("kernel ls: %s", out)
	}
}

func TestATerminalInTheGuest(t *testing.T) {
	b := newBanger(t)
	name := b.vm("--net", "none")
	r := b.run("", "exec", "-t", name, "--", "sh", "-c", "tty && stty size && ls /sys/class/net")
	if r.code != 0 || r.out != "/dev/pts/0\r\n24 80\r\nlo\r\n" {
		t.Errorf("%+v", r)
	}
}

// The guest reaches the host through the user network, though the host's user has no
// privilege for that.
func TestUserNetwork(t *testing.T) {
	b := newBanger(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err == nil {
			io.WriteString(conn, "the host answers")
			conn.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	name := b.vm("--net", "user")
	if out := b.ok("exec", name, "--", "nc", "10.0.2.2", port); out != "the host answers" {
		t.Errorf("the guest read %q", out)
	}
}

func TestOpenAPI(t *testing.T) {
	b := newBanger(t)
	b.ok("ls")
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(b.state, "bangerd.sock"))
	}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://banger/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var doc struct {
		OpenAPI string                                `json:"openapi"`
		Paths   map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || doc.Paths["/v1/vms"]["post"] == nil || doc.Paths["/v1/vms/{ref}/stream"]["get"] == nil {
		t.Errorf("OpenAPI %q with paths %v", doc.OpenAPI, doc.Paths)
	}
}

// A machine that is killed from outside is noticed, and says so.
func TestAMachineThatIsKilled(t *testing.T) {
	b := newBanger(t)
	name := b.vm()
	p, err := os.FindProcess(b.inspect(name).PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the news of its end", func() bool { return b.inspect(name).State == "failed" })
	if v := b.inspect(name); !strings.Contains(v.Error, "signal 9") || v.PID != 0 {
		t.Errorf("inspect: %+v", v)
	}
	b.ok("start", name)
	b.refused(125, nil, "exec", name, "--", "poweroff", "-f") // takes its own connection along
	eventually(t, "the news of its end", func() bool { return b.inspect(name).State == "stopped" })
	if v := b.inspect(name); v.Error != "powered off by the guest" {
		t.Errorf("inspect: %+v", v)
	}
}

func TestVerbsOnMany(t *testing.T) {
	b := newBanger(t)
	one, two := b.vm(), b.vm()
	if out := b.ok("pause", one, two); len(strings.Fields(out)) != 2 {
		t.Errorf("pause named %q", out)
	}
	b.refused(125, []string{"is paused", "banger resume " + one}, "exec", one, "--", "true")
	b.killDaemon()
	if v := b.inspect(one); v.State != "paused" {
		t.Errorf("after the daemon's death: %+v", v)
	}
	b.ok("resume", one, two)
	b.ok("exec", one, "--", "true")
	r := b.run("", "kill", one, "nonesuch", two, one)
	if r.code != 1 || len(strings.Fields(r.out)) != 2 || !strings.Contains(r.err, "nonesuch") {
		t.Errorf("kill of two and a stranger: %+v", r)
	}
	b.ok("restart", one)
	b.ok("exec", one, "--", "true")
	b.refused(1, []string{one, "banger rm -f " + one}, "rm", one, two)
	if left := b.ok("ls", "-aq"); left != one+"\n" {
		t.Errorf("rm left %q", left)
	}
}
