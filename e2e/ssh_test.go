package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// OpenSSH's own programs reach a VM that has neither network nor sshd.
func TestOpenSSHClients(t *testing.T) {
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("SKIP: there is no ssh here")
	}
	b := newBanger(t)
	b.vm("--name", "web", "--net", "none")
	config := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(config, []byte(b.ok("ssh-config")), 0o600); err != nil {
		t.Fatal(err)
	}
	client := func(name string, args ...string) (string, error) {
		c := exec.Command(name, args...)
		c.Env = b.env
		c.Dir = t.TempDir()
		out, err := c.CombinedOutput()
		return string(out), err
	}
	for _, host := range []string{"web", "web.vm"} {
		if out, err := client("ssh", "-F", config, "-o", "BatchMode=yes", host, "hostname; exit 3"); out != "web\n" || err == nil || err.Error() != "exit status 3" {
			t.Errorf("ssh %s: %q, %v", host, out, err)
		}
	}
	piped := exec.Command("sh", "-c", filepath.Join(b.bin, "banger")+" ssh-config | ssh -F /dev/stdin web hostname")
	piped.Env = b.env
	if out, err := piped.CombinedOutput(); string(out) != "web\n" || err != nil {
		t.Errorf("with a piped configuration: %q, %v", out, err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("by scp"), 0o640); err != nil {
		t.Fatal(err)
	}
	if out, err := client("scp", "-F", config, "-p", file, "web:/root/file"); err != nil {
		t.Errorf("scp: %v\n%s", err, out)
	}
	if out, err := client("sftp", "-F", config, "-b", "/dev/stdin", "web:/root/file", file+".back"); err != nil {
		t.Errorf("sftp: %v\n%s", err, out)
	}
	if back, err := os.ReadFile(file + ".back"); err != nil || string(back) != "by scp" {
		t.Errorf("came back as %q, %v", back, err)
	}
	r := b.run("typed", "ssh", "web", "--", "cat; exit 5")
	if r.code != 5 || r.out != "typed" {
		t.Errorf("banger ssh: %+v", r)
	}
	// A VM by the same name with another key is not taken for this one.
	b.ok("rm", "-f", "web")
	b.vm("--name", "web", "--net", "none")
	if out, err := client("ssh", "-F", config, "-o", "BatchMode=yes", "web", "true"); err != nil {
		t.Errorf("the new VM: %v\n%s", err, out)
	}
}

// The exit status arrives though the client's own input has ended long before.
func TestSSHOverAMasterKeepsTheStatus(t *testing.T) {
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("SKIP: there is no ssh here")
	}
	b := newBanger(t)
	b.vm("--name", "web", "--net", "none")
	dir := t.TempDir()
	config, master := filepath.Join(dir, "config"), filepath.Join(dir, "master")
	if err := os.WriteFile(config, []byte(b.ok("ssh-config")), 0o600); err != nil {
		t.Fatal(err)
	}
	ssh := func(args ...string) error {
		c := exec.Command("ssh", append([]string{"-F", config, "-S", master}, args...)...)
		c.Env = b.env
		return c.Run()
	}
	if err := ssh("-M", "-f", "-N", "web"); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if err := ssh("web", "true"); err != nil {
			t.Fatalf("after %d that worked: %v", i, err)
		}
	}
	if err := ssh("-O", "exit", "web"); err != nil {
		t.Error(err)
	}
}

func TestDebian(t *testing.T) {
	b := newBanger(t)
	if left := b.ok("image", "ls"); !strings.Contains(left, "debian") {
		t.Skip("SKIP: the runtime bundle has no image debian")
	}
	r := b.run("", "run", "--name", "deb", "--memory", "768M", "--", "sh", "-c", "cat /etc/os-release; systemctl is-system-running; cat /proc/1/comm")
	if r.code != 0 || !strings.Contains(r.out, "VERSION_CODENAME=bookworm") || !strings.Contains(r.out, "running\nsystemd\n") {
		t.Errorf("%+v", r)
	}
	if out := b.ok("exec", "deb", "--", "sh", "-c", "ip -4 -o addr show; cat /etc/resolv.conf; modprobe dummy && echo modules work"); !strings.Contains(out, "inet "+b.inspect("deb").Network.IP+"/") || !strings.Contains(out, "nameserver 10.") || !strings.Contains(out, "modules work") {
		t.Errorf("its network and modules: %s", out)
	}
	if _, err := exec.LookPath("rsync"); err == nil {
		config, tree := filepath.Join(t.TempDir(), "config"), t.TempDir()
		for path, text := range map[string]string{config: b.ok("ssh-config"), filepath.Join(tree, "a"): "one", filepath.Join(tree, "b"): "two"} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c := exec.Command("rsync", "-a", "-e", "ssh -F "+config, tree+"/", "deb:/srv/tree/")
		c.Env = b.env
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("rsync: %v\n%s", err, out)
		}
		if out := b.ok("exec", "deb", "--", "cat", "/srv/tree/a", "/srv/tree/b"); out != "onetwo" {
			t.Errorf("rsync brought %q", out)
		}
	}
	b.ok("stop", "deb")
	if v := b.inspect("deb"); v.State != "stopped" || v.Error != "" {
		t.Errorf("stopped as %+v", v)
	}
}
