package image

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/errs"
	"banger/internal/host"
)

// filesystem makes an ext4 filesystem of these files, by path.
func filesystem(t *testing.T, files map[string]string) string {
	t.Helper()
	for _, program := range []string{"mkfs.ext4", "debugfs"} {
		if _, err := host.LookPath(program); err != nil {
			t.Skipf("SKIP: this host has no %s", program)
		}
	}
	tree := t.TempDir()
	for name, content := range files {
		p := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "fs")
	mkfs(t, tree, path, "16M")
	return path
}

// mkfs makes a filesystem of a tree, as others do.
func mkfs(t *testing.T, tree, path, size string) {
	t.Helper()
	if err := host.Run(t.Context(), host.Command{Path: "mkfs.ext4", Args: []string{"-q", "-b", "4096", "-E", "root_owner=0:0", "-d", tree, path, size}}); err != nil {
		t.Fatal(err)
	}
}

func sound(t *testing.T, fs string) {
	t.Helper()
	if err := host.Run(t.Context(), host.Command{Path: "e2fsck", Args: []string{"-f", "-n", fs}}); err != nil {
		t.Errorf("the filesystem is damaged: %v", err)
	}
}

func TestTidy(t *testing.T) {
	residue := map[string]string{
		"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/hostname": "web\n",
		"etc/ssh/ssh_host_ed25519_key": "secret", "etc/ssh/ssh_host_rsa_key.pub": "public",
		"var/lib/dhcp/dhclient.leases": "lease", "var/lib/systemd/random-seed": "seed",
		"var/log/journal/0123/system.journal": strings.Repeat("log\n", 5000), "var/log/apt/history.log": strings.Repeat("apt\n", 3000), "var/log/wtmp": "x",
		"root/.bash_history": "rm -rf /", "home/user/.ash_history": "ls",
	}
	kept := map[string]string{
		"etc/ssh/sshd_config": "Port 22\n", "root/.bashrc": "export A=1\n", "home/user/ssh_host_key": "mine", "var/lib/app/data": "data",
		"etc/fstab": "# comment\n/dev/vdb /home ext4 defaults 0 2\n",
		// A name that would be a command to debugfs, were it passed on.
		"var/log/x y\nwrite /etc/passwd stolen\n.log": "odd",
		"var/lib/dpkg/status":                         "Package: curl\nStatus: install ok installed\nVersion: 7.88\n\n",
	}
	all := map[string]string{}
	for _, m := range []map[string]string{residue, kept} {
		for k, v := range m {
			all[k] = v
		}
	}
	fs := filesystem(t, all)
	packages, err := Tidy(t.Context(), fs, false)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(packages, []Package{{"curl", "7.88"}}) {
		t.Errorf("packages are %v", packages)
	}
	for name := range residue {
		if got := debugfs(t, fs, "cat /"+name); got != "" {
			t.Errorf("%s has %.40q", name, got)
		}
	}
	for _, name := range []string{"etc/machine-id", "var/log/apt/history.log", "var/log/wtmp"} {
		if got := debugfs(t, fs, "stat /"+name); !strings.Contains(got, "Mode:  0640") || !strings.Contains(got, "Size: 0") {
			t.Errorf("%s is not there, empty:\n%s", name, got)
		}
	}
	for _, name := range []string{"etc/ssh/sshd_config", "root/.bashrc", "home/user/ssh_host_key", "var/lib/app/data"} {
		if got := debugfs(t, fs, "cat /"+name); got != kept[name] {
			t.Errorf("%s has %q", name, got)
		}
	}
	if got := debugfs(t, fs, "ls -p /"); strings.Contains(got, "stolen") {
		t.Errorf("a file's name was taken for a command:\n%s", got)
	}
	if got := debugfs(t, fs, "cat /etc/fstab"); got != "# comment\n#dev/vdb /home ext4 defaults 0 2\n" {
		t.Errorf("fstab is %q", got)
	}
	sound(t, fs)
}

func TestTidyKeepsResidue(t *testing.T) {
	fs := filesystem(t, map[string]string{"etc/machine-id": "0123", "root/.bash_history": "ls"})
	if _, err := Tidy(t.Context(), fs, true); err != nil {
		t.Fatal(err)
	}
	if got := debugfs(t, fs, "cat /etc/machine-id") + debugfs(t, fs, "cat /root/.bash_history"); got != "0123ls" {
		t.Errorf("what was to stay is %q", got)
	}
}

func TestTidyRefusesWhatIsNoFilesystem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fs")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Tidy(t.Context(), path, false); errs.KindOf(err) != errs.Invalid {
		t.Errorf("zeros: %v", err)
	}
}

// An image of the old layout that is imported has no use for the disks that it lacks.
func TestImportScrubsFstab(t *testing.T) {
	fs := filesystem(t, map[string]string{"etc/fstab": "/dev/vdc /var ext4 defaults 0 2\nUUID=1 /home ext4 defaults 0 2\n"})
	f, err := os.Open(fs)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := filepath.Join(t.TempDir(), "imported")
	if err := (Import{}).take(t.Context(), f, path, quiet); err != nil {
		t.Fatal(err)
	}
	if got := debugfs(t, path, "cat /etc/fstab"); got != "#dev/vdc /var ext4 defaults 0 2\nUUID=1 /home ext4 defaults 0 2\n" {
		t.Errorf("fstab is %q", got)
	}
	if got := debugfs(t, fs, "cat /etc/fstab"); !strings.HasPrefix(got, "/dev/vdc") {
		t.Errorf("the file that was imported has changed: %q", got)
	}
	sound(t, path)
}

func TestScrubFstab(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"/dev/vda / ext4 defaults 0 1\n/dev/vdb /home ext4 defaults 0 2\n/dev/vdc\t/var ext4 x 0 2", "/dev/vda / ext4 defaults 0 1\n#dev/vdb /home ext4 defaults 0 2\n#dev/vdc\t/var ext4 x 0 2"},
		{"  /dev/vdb /var ext4 x", "# /dev/vdb /var ext4 x"},
		{"UUID=1 /home ext4 x\n/dev/vdb /srv ext4 x\n/dev/vdd /home ext4 x\nserver:/x /home nfs x\n# /dev/vdb /home\n/dev/vdb /home/me ext4 x\n",
			"UUID=1 /home ext4 x\n/dev/vdb /srv ext4 x\n/dev/vdd /home ext4 x\nserver:/x /home nfs x\n# /dev/vdb /home\n/dev/vdb /home/me ext4 x\n"},
	} {
		got := []byte(c.in)
		scrubFstab(got)
		if string(got) != c.want {
			t.Errorf("%q became %q", c.in, got)
		}
	}
}

// FuzzScrubFstab checks that lines of the old layout become comments, in place, and nothing else
// changes.
func FuzzScrubFstab(f *testing.F) {
	f.Add([]byte("/dev/vdb /home ext4 defaults 0 2\n/dev/vda / ext4\n\t/dev/vdc\t/var ext4\n/dev/vdb /srv ext4"))
	f.Fuzz(func(t *testing.T, fstab []byte) {
		was := bytes.Clone(fstab)
		scrubFstab(fstab)
		if len(fstab) != len(was) {
			t.Fatalf("%d bytes became %d", len(was), len(fstab))
		}
		before, after := bytes.SplitAfter(was, []byte("\n")), bytes.SplitAfter(fstab, []byte("\n"))
		if len(before) != len(after) {
			t.Fatalf("%d lines became %d", len(before), len(after))
		}
		for i, line := range after {
			old := bytes.Contains(before[i], []byte("/dev/vd")) && (bytes.Contains(before[i], []byte("/home")) || bytes.Contains(before[i], []byte("/var")))
			if changed := !bytes.Equal(line, before[i]); changed && (!old || line[0] != '#' || !bytes.Equal(line[1:], before[i][1:])) {
				t.Errorf("%q became %q", before[i], line)
			}
		}
		again := bytes.Clone(fstab)
		if scrubFstab(again); !bytes.Equal(again, fstab) {
			t.Errorf("scrubbed twice: %q", again)
		}
	})
}
