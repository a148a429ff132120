package api

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A socket of another user's is one that they may have put there, unless only root could.
func TestWhoseSocketIsTrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root can give a socket to another user")
	}
	const someone = 12345
	for _, c := range []struct {
		name            string
		dirOwner, owner int
		mode            os.FileMode
		trusted         bool
	}{
		{"root's own", 0, 0, 0o755, true},
		{"an owner's of root's daemon", 0, someone, 0o755, true},
		{"in a directory of theirs", someone, someone, 0o755, false},
		{"where all may write", 0, someone, 0o777, false},
		{"where their group may write", 0, someone, 0o775, false},
	} {
		dir, err := os.MkdirTemp("", "banger-api") // a socket's path is short
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		path := filepath.Join(dir, "sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := os.Lchown(path, c.owner, c.owner); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, c.dirOwner, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, c.mode); err != nil {
			t.Fatal(err)
		}
		if err := trusted(path); (err == nil) != c.trusted || err != nil && !strings.Contains(err.Error(), "belongs to user 12345") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
