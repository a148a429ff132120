package oci

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/host"
	"banger/internal/image/ext4"
)

func needTools(t testing.TB, programs ...string) {
	t.Helper()
	for _, program := range append(programs, "mkfs.ext4", "tune2fs", "e2fsck") {
		if _, err := host.LookPath(program); err != nil {
			t.Skipf("SKIP: this host has no %s", program)
		}
	}
}

func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := host.Output(t.Context(), host.Command{Path: args[0], Args: args[1:]})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// imported writes what lies at path as a filesystem, and has that checked.
func imported(t testing.TB, path string, c Choice) (string, *Source, error) {
	t.Helper()
	s, err := Open(path, t.TempDir(), c)
	if err != nil {
		return "", nil, err
	}
	defer s.Close()
	return written(t, s)
}

func written(t testing.TB, s *Source) (string, *Source, error) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "fs")
	w, err := ext4.NewWriter(out, "seed", 0)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Write(t.Context(), w, ext4.Size{JournalBytes: 4 << 20}, func(string, int64, int64) {})
	if closeErr := w.Close(); closeErr != nil {
		t.Error(closeErr)
	}
	if err != nil {
		if _, statErr := os.Stat(out); statErr == nil {
			t.Error("a filesystem that failed is left behind")
		}
		return "", nil, err
	}
	run(t, "e2fsck", "-f", "-n", out)
	return out, s, nil
}

// seen is what a file is, in a line; files of several names are called by the first.
type seen map[string]string

// ofFilesystem reads a tree out of an ext4 filesystem.
func ofFilesystem(t testing.TB, path string) seen {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := ext4.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out, first := seen{}, map[ext4.Inode]string{}
	var walk func(name string, ino ext4.Inode)
	walk = func(name string, ino ext4.Inode) {
		s, err := r.Stat(ino)
		if err != nil {
			t.Fatal(err)
		}
		what := ""
		switch s.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			h := sha256.New()
			n, err := io.Copy(h, r.Content(s))
			if err != nil || n != s.Size {
				t.Fatalf("%s: %d of %d bytes: %v", name, n, s.Size, err)
			}
			what = fmt.Sprintf("%d bytes %x", n, h.Sum(nil))
		case unix.S_IFLNK:
			target, err := r.Target(s)
			if err != nil {
				t.Fatal(err)
			}
			what = "-> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			what = fmt.Sprintf("device %d:%d", s.Major, s.Minor)
		}
		if s.Mode&unix.S_IFMT != unix.S_IFDIR && s.Links > 1 {
			what += fmt.Sprintf(" one of %d", s.Links)
			if first[ino] == "" {
				first[ino] = name
			}
			what += " with " + first[ino]
		}
		xattrs := map[string]string{}
		for _, x := range s.Xattrs {
			xattrs[x.Name] = string(x.Value)
		}
		out[name] = line(s.Mode, s.UID, s.GID, what, xattrs, s.MTime.UnixNano())
		if s.Mode&unix.S_IFMT != unix.S_IFDIR {
			return
		}
		var entries []ext4.Entry
		for e, err := range r.Entries(s) {
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, e)
		}
		sort.Slice(entries, func(i, j int) bool { return entries[i].Name < entries[j].Name })
		for _, e := range entries {
			walk(name+"/"+e.Name, e.Inode)
		}
	}
	walk("", 2)
	delete(out, "/lost+found")
	return out
}

// ofDirectory reads a tree out of the host's own filesystem.
func ofDirectory(t testing.TB, root string) seen {
	t.Helper()
	out, first := seen{}, map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root)
		what := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what = fmt.Sprintf("%d bytes %x", len(b), sha256.Sum256(b))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what = "-> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			what = fmt.Sprintf("device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			what += fmt.Sprintf(" one of %d", st.Nlink)
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			what += " with " + first[st.Ino]
		}
		out[name] = line(st.Mode, st.Uid, st.Gid, what, xattrsOf(t, path), st.Mtim.Nano())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func xattrsOf(t testing.TB, path string) map[string]string {
	t.Helper()
	names, value := make([]byte, 64<<10), make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range strings.FieldsFunc(string(names[:n]), func(r rune) bool { return r == 0 }) {
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(value[:n])
	}
	return out
}

func line(mode, uid, gid uint32, what string, xattrs map[string]string, mtime int64) string {
	s := fmt.Sprintf("%o %d:%d %s", mode, uid, gid, what)
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		s += fmt.Sprintf(" %s=%q", name, xattrs[name])
	}
	if mode&unix.S_IFMT != unix.S_IFDIR { // unpacking changes those of directories it had to make
		s += fmt.Sprintf(" at %d", mtime)
	}
	return s
}

func same(t testing.TB, got, want seen) {
	t.Helper()
	wrong := 0
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] && wrong < 20 {
			wrong++
			t.Errorf("%q is\n\t%s, want\n\t%s", name, got[name], want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok && wrong < 20 {
			wrong++
			t.Errorf("%q is %s, and should not be", name, got[name])
		}
	}
}

// unpackedBy returns the tree that umoci makes of an image of a layout.
func unpackedBy(t testing.TB, layout string) seen {
	t.Helper()
	needTools(t, "umoci")
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root can have umoci unpack files of other users")
	}
	bundle := filepath.Join(t.TempDir(), "bundle")
	run(t, "umoci", "unpack", "--image", layout+":latest", bundle)
	return ofDirectory(t, filepath.Join(bundle, "rootfs"))
}
