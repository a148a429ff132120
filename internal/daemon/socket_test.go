package daemon

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/config"
)

const nobodyUID = 65534

// TestAsks is no test: it is the process that asks a socket whether it is served.
func TestAsks(t *testing.T) {
	socket := os.Getenv("BANGER_TEST_ASK")
	if socket == "" {
		t.Skip("SKIP: it is run by TestOwnersSocket")
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		os.Stdout.WriteString("refused\n")
		os.Exit(0)
	}
	b, _ := io.ReadAll(conn)
	os.Stdout.WriteString("heard " + string(b) + "\n")
	os.Exit(0)
}

// The socket of root's daemon serves root and its owner, and nobody else, whatever its mode.
func TestOwnersSocket(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root's daemon has an owner")
	}
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // others come through
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "asks.bin")
	b, err := os.ReadFile(self)
	if err == nil {
		err = os.WriteFile(program, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	ask := func(socket string, uid uint32) string {
		cmd := exec.Command(program, "-test.run=^TestAsks$")
		cmd.Dir = "/"
		cmd.Env = append(os.Environ(), "BANGER_TEST_ASK="+socket)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	for _, c := range []struct {
		name   string
		owner  *config.Owner
		mode   os.FileMode // of the socket; 0: as it was made
		uid    uint32
		answer string
	}{
		{"root without an owner", nil, 0, 0, "heard hello"},
		{"another without an owner", nil, 0, nobodyUID, "refused"},
		{"another though the mode lets them", nil, 0o666, nobodyUID, "heard"},
		{"the owner", &config.Owner{Name: "nobody", UID: nobodyUID, GID: nobodyUID}, 0, nobodyUID, "heard hello"},
		{"root beside the owner", &config.Owner{Name: "nobody", UID: nobodyUID, GID: nobodyUID}, 0, 0, "heard hello"},
		{"neither", &config.Owner{Name: "nobody", UID: nobodyUID, GID: nobodyUID}, 0, 65533, "refused"},
		{"neither though the mode lets them", &config.Owner{Name: "nobody", UID: nobodyUID, GID: nobodyUID}, 0o666, 65533, "heard"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, "run", "s")
			e, err := openSocket(path, c.owner)
			if err != nil {
				t.Fatal(err)
			}
			defer e.remove()
			defer e.Close()
			if c.mode != 0 {
				err = errors.Join(os.Chmod(path, c.mode), os.Chmod(filepath.Dir(path), 0o755))
			}
			info, serr := os.Stat(path)
			if err = errors.Join(err, serr); err != nil {
				t.Fatal(err)
			}
			want := uint32(0)
			if c.owner != nil {
				want = nobodyUID
			}
			if uid := info.Sys().(*syscall.Stat_t).Uid; uid != want || c.mode == 0 && info.Mode().Perm() != 0o600 {
				t.Errorf("the socket is %v of user %d", info.Mode(), uid)
			}
			go func() {
				if conn, err := e.Accept(); err == nil {
					conn.Write([]byte("hello"))
					conn.Close()
				}
			}()
			if got := ask(path, c.uid); got != c.answer {
				t.Errorf("got %q, want %q", got, c.answer)
			}
		})
	}
}

// The owner reads the SSH key of VMs where they can, and nobody else does.
func TestOwnersKey(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root's daemon has an owner")
	}
	id, err := loadIdentity(filepath.Join(t.TempDir(), "ssh"))
	if err != nil {
		t.Fatal(err)
	}
	first := id.file
	dir := t.TempDir()
	if err := id.handTo(&config.Owner{Name: "nobody", UID: nobodyUID, GID: nobodyUID}, dir); err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(first)
	b, berr := os.ReadFile(id.file)
	info, serr := os.Stat(id.file)
	if err := errors.Join(err, berr, serr); err != nil || string(a) != string(b) || info.Mode().Perm() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != nobodyUID {
		t.Errorf("%s: %v, %v", id.file, info, err)
	}
}
