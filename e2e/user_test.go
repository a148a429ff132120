package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Users without names, who have nothing and may do nothing.
const (
	someone = 54321
	another = 54322
)

// bangerOfUser returns a banger of a user's own: its programs and its bundle lie where that
// user can read them, as in an installation, and its state in the user's home.
func bangerOfUser(t *testing.T, uid uint32) *banger {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root can run a program as someone else; what is tested here, all other tests do then")
	}
	home := t.TempDir()
	b := newBanger(t)
	for _, dir := range []string{home, filepath.Dir(home)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	installed, state := filepath.Join(home, "installed"), filepath.Join(home, "state")
	bundle := os.Getenv("BANGER_RUNTIME_DIR")
	for from, to := range map[string]string{
		bin:                                     "bin",
		filepath.Join(bundle, "kernels"):        "runtime/kernels",
		filepath.Join(bundle, "images", "tiny"): "runtime/images/tiny",
		filepath.Join(bundle, "bundle.json"):    "runtime/bundle.json",
	} {
		to = filepath.Join(installed, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cp", "-rL", "--sparse=always", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := errors.Join(os.Mkdir(state, 0o700), os.Chown(state, int(uid), int(uid))); err != nil {
		t.Fatal(err)
	}
	b.user = &syscall.Credential{Uid: uid, Gid: uid}
	b.bin, b.state = filepath.Join(installed, "bin"), state
	b.env = append(b.env, "BANGER_STATE_DIR="+state, "BANGER_RUNTIME_DIR="+filepath.Join(installed, "runtime"), "HOME="+state, "XDG_CONFIG_HOME="+state)
	return b
}

// Whoever is not root has all of it but what only root can do: QEMU's own network stands for
// the bridge, and the machines run as the user.
func TestWithoutRoot(t *testing.T) {
	b := bangerOfUser(t, someone)
	address := freePort(t)
	name := b.vm("--publish", address+":80", "--wait", "agent")
	v := b.inspect(name)
	if v.Network.Mode != "user" || v.Confinement == nil || v.Confinement.UID != someone || !v.Confinement.NoNewPrivs {
		t.Errorf("a user's VM: %+v, %+v", v.Network, v.Confinement)
	}
	if !strings.Contains(strings.Join(v.Notes, "\n"), "not confined") {
		t.Errorf("what is not done is not said: %q", v.Notes)
	}

	if out := b.run("from a file", "exec", name, "--", "sh", "-c", "cat >/root/index.html; httpd -h /root"); out.code != 0 {
		t.Errorf("exec: %+v", out)
	}
	answer, err := http.Get("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if page, err := io.ReadAll(answer.Body); string(page) != "from a file" {
		t.Errorf("by its port: %q, %v", page, err)
	}
	b.ok("cp", name+":/root/index.html", filepath.Join(b.state, "copy"))
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(b.state, "copy"), &st); err != nil || st.Uid != someone {
		t.Errorf("a copy is %d's: %v", st.Uid, err)
	}

	var status struct{ Daemon struct{ PID int } }
	if err := json.Unmarshal([]byte(b.ok("daemon", "status", "--json")), &status); err != nil {
		t.Fatal(err)
	}
	b.signal(status.Daemon.PID, unix.SIGKILL)
	if got := b.ok("exec", name, "cat", "/root/index.html"); got != "from a file" {
		t.Errorf("after the daemon's death: %q", got)
	}
	b.ok("restart", name)
	if got := b.ok("exec", name, "cat", "/root/index.html"); got != "from a file" {
		t.Errorf("after a restart: %q", got)
	}

	b.refused(1, []string{"root", "--net user"}, "create", "--image", "tiny", "--net", "bridge")
	b.refused(1, []string{"root"}, "create", "--image", "tiny", "--disk-driver", "dm")

	stranger := *b
	stranger.user = &syscall.Credential{Uid: another, Gid: another}
	stranger.refused(125, []string{"denied"}, "exec", name, "true") // with the other's config file
	stranger.env = append(stranger.env, "XDG_CONFIG_HOME=/nowhere")
	stranger.refused(1, []string{"denied"}, "ls")
	stranger.refused(125, []string{"denied"}, "exec", name, "true")
}
