package ext4

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/host"
)

func needMkfs(t testing.TB) {
	t.Helper()
	for _, program := range []string{"mkfs.ext4", "dumpe2fs", "debugfs", "e2fsck"} {
		if _, err := host.LookPath(program); err != nil {
			t.Skipf("SKIP: this host has no %s", program)
		}
	}
}

func tool(t testing.TB, args ...string) string {
	t.Helper()
	out, err := host.Output(t.Context(), host.Command{Path: args[0], Args: args[1:]})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// tree makes a directory with files of sizes around a block's.
func tree(t *testing.T, files int) string {
	t.Helper()
	dir := t.TempDir()
	for i := range files {
		name := filepath.Join(dir, strings.Repeat("d", i%7+1), "file"+strings.Repeat("x", i%50), string(rune('a'+i%26)))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, make([]byte, i*37%9000), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestMakeReadOnly(t *testing.T) {
	needMkfs(t)
	for _, files := range []int{0, 1, 700} {
		path := filepath.Join(t.TempDir(), "fs")
		if err := MakeReadOnly(t.Context(), tree(t, files), path, "seed"); err != nil {
			t.Errorf("%d files: %v", files, err)
			continue
		}
		tool(t, "e2fsck", "-f", "-n", path)
		about := tool(t, "dumpe2fs", "-h", path)
		for _, bad := range []string{"has_journal", "resize_inode"} {
			if strings.Contains(about, bad) {
				t.Errorf("it has the feature %s", bad)
			}
		}
		if files > 0 && !strings.Contains(tool(t, "debugfs", "-R", "ls -p /", path), "/040755/0/0/d//") {
			t.Error("its files do not belong to root")
		}
	}
}
