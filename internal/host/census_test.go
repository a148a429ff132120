package host

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// A stranger's process that pretends to be a machine is left alone: only the user's own count, and
// those that root has confined.
func TestOnlyProcessesOfOurOwnUsersAreOurs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: only root can start processes of other users")
	}
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	want := map[uint32]bool{0: true, 1234: false, FirstUID: true, FirstUID + 5: true, FirstUID - 1: false}
	for uid := range want {
		name := fmt.Sprintf("u%d", uid)
		c := exec.Command(sleep, "60")
		c.Args[0] = "banger-" + name
		c.Env = []string{envDir + "=" + filepath.Join(dir, name)}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		defer c.Wait()
		defer c.Process.Kill()
	}
	found, err := ProcessesIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, o := range found {
		seen[o.Path] = true
	}
	for uid, is := range want {
		if name := fmt.Sprintf("u%d", uid); seen[name] != is {
			t.Errorf("a process of uid %d: ours %v, want %v", uid, seen[name], is)
		}
	}
}
