package ext4

import (
	"os"
	"path/filepath"
	"regexp"
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

func TestMakeRoot(t *testing.T) {
	needMkfs(t)
	dir := tree(t, 20)
	make := func(seed string) string {
		path := filepath.Join(t.TempDir(), "fs")
		if err := MakeRoot(t.Context(), Root{Dir: dir, Path: path, Bytes: 128 << 20, JournalBytes: 4 << 20, Seed: seed}); err != nil {
			t.Fatal(err)
		}
		tool(t, "e2fsck", "-f", "-n", path)
		return tool(t, "dumpe2fs", path)
	}
	about := make("one")
	// The guest has nothing to initialise, and the group descriptors can grow to 1 TiB:
	// 8192 groups of 128 MiB, 64 bytes each, are 128 blocks, one of which is in use.
	for _, want := range []string{"resize_inode", "has_journal", "Reserved GDT blocks:      127", "[ITABLE_ZEROED]", "Inode count:              8192", "Total journal blocks:     1024"} {
		if !strings.Contains(about, want) {
			t.Errorf("no %q in\n%s", want, about)
		}
	}
	uuid := regexp.MustCompile(`Filesystem UUID: +([0-9a-f-]{36})`)
	one, again, two := uuid.FindString(about), uuid.FindString(make("one")), uuid.FindString(make("two"))
	if one == "" || one != again || one == two {
		t.Errorf("UUIDs: %q, again %q, of another seed %q", one, again, two)
	}
}

func TestMakeRootTooSmall(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "big"), []byte(strings.Repeat("x", 20<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	err := MakeRoot(t.Context(), Root{Dir: dir, Path: filepath.Join(t.TempDir(), "fs"), Bytes: 16 << 20, JournalBytes: 4 << 20})
	if err == nil || !strings.Contains(err.Error(), "Could not allocate block") {
		t.Errorf("error is %v", err)
	}
}
