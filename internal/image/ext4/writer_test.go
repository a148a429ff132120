package ext4

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// writing is a filesystem in the making, with names.
type writing struct {
	*Writer
	t    testing.TB
	path string
	dirs map[Inode]*Directory
}

func newWriting(t testing.TB, maxBytes int64) *writing {
	t.Helper()
	needMkfs(t)
	path := filepath.Join(t.TempDir(), "fs")
	w, err := NewWriter(path, "seed", maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	x := &writing{w, t, path, map[Inode]*Directory{}}
	x.dirs[Top] = &Directory{Inode: Top, Parent: Top}
	x.dirs[LostFound] = &Directory{Inode: LostFound, Parent: Top}
	x.name(Top, "lost+found", LostFound, unix.S_IFDIR)
	return x
}

func (x *writing) name(dir Inode, name string, ino Inode, kind uint32) {
	x.t.Helper()
	if err := x.Link(ino); err != nil {
		x.t.Fatal(err)
	}
	x.dirs[dir].Entries = append(x.dirs[dir].Entries, Entry{Name: name, Inode: ino, Type: kind})
}

func (x *writing) mkdir(parent Inode, name string) Inode {
	x.t.Helper()
	ino, err := x.Add(Attr{Mode: unix.S_IFDIR | 0o755, MTime: time.Unix(1e9, 0)})
	if err != nil {
		x.t.Fatal(err)
	}
	x.dirs[ino] = &Directory{Inode: ino, Parent: parent}
	x.name(parent, name, ino, unix.S_IFDIR)
	return ino
}

func (x *writing) file(dir Inode, name string, a Attr, r io.Reader) Inode {
	x.t.Helper()
	a.Mode |= unix.S_IFREG
	ino, err := x.AddFile(a, r)
	if err != nil {
		x.t.Fatal(err)
	}
	x.name(dir, name, ino, unix.S_IFREG)
	return ino
}

// finish also has the filesystem checked.
func (x *writing) finish(size Size) {
	x.t.Helper()
	if size.JournalBytes == 0 {
		size.JournalBytes = 4 << 20
	}
	err := x.Finish(x.t.Context(), size, func(yield func(Directory) bool) {
		for _, d := range x.dirs {
			if !yield(*d) {
				return
			}
		}
	})
	if err != nil {
		x.t.Fatal(err)
	}
	tool(x.t, "e2fsck", "-f", "-n", x.path)
}

func TestWriterEmpty(t *testing.T) {
	x := newWriting(t, 0)
	x.finish(Size{})
	about := tool(t, "dumpe2fs", x.path)
	for _, want := range []string{"resize_inode", "has_journal", "Reserved GDT blocks:      127", "Total journal blocks:     1024", "metadata_csum"} {
		if !strings.Contains(about, want) {
			t.Errorf("no %q in\n%s", want, about)
		}
	}
}

func TestWriterKinds(t *testing.T) {
	x := newWriting(t, 0)
	at := time.Unix(5e9, 123456789)
	etc := x.mkdir(Top, "etc")
	f := x.file(etc, "passwd", Attr{Mode: 0o4755, UID: 100000, GID: 70000, MTime: at, Xattrs: []Xattr{
		{"security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")},
	}}, strings.NewReader("root:x:0:0\n"))
	x.name(Top, "second name", f, unix.S_IFREG)
	x.file(etc, "large xattrs", Attr{Xattrs: []Xattr{
		{"user.b", bytes.Repeat([]byte("b"), 1000)}, {"user.a", []byte("a")}, {"trusted.x", nil}, {"com.apple.quarantine", []byte("dropped")},
		{aclAccess, []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff")},
	}}, strings.NewReader(""))
	for name, a := range map[string]Attr{
		"null": {Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 3}, "large": {Mode: unix.S_IFBLK | 0o600, Major: 259, Minor: 70000},
		"pipe": {Mode: unix.S_IFIFO | 0o600}, "socket": {Mode: unix.S_IFSOCK | 0o600},
	} {
		ino, err := x.Add(a)
		if err != nil {
			t.Fatal(err)
		}
		x.name(Top, name, ino, a.Mode&unix.S_IFMT)
	}
	for name, target := range map[string]string{"short": "/etc/passwd", "59": strings.Repeat("s", 59), "60": strings.Repeat("s", 60), "long": strings.Repeat("l", 4095)} {
		ino, err := x.AddSymlink(Attr{Mode: unix.S_IFLNK | 0o777}, target)
		if err != nil {
			t.Fatal(err)
		}
		x.name(Top, name, ino, unix.S_IFLNK)
	}
	if _, err := x.AddSymlink(Attr{Mode: unix.S_IFLNK}, strings.Repeat("l", 4096)); err == nil {
		t.Error("a link that is too long was made")
	}
	x.finish(Size{})
	stat := tool(t, "debugfs", "-R", "stat /etc/passwd", x.path)
	for _, want := range []string{"Mode:  04755", "User: 100000", "Group: 70000", "Links: 2", "Size: 11", "security.capability (20)", "mtime: 0x2a05f200:1d6f3455"} {
		if !strings.Contains(stat, want) {
			t.Errorf("no %q in\n%s", want, stat)
		}
	}
	xattrs := tool(t, "debugfs", "-R", "ea_list \"/etc/large xattrs\"", x.path)
	for _, want := range []string{"user.b (1000)", `user.a (1) = "a"`, "trusted.x (0)", "system.posix_acl_access"} {
		if !strings.Contains(xattrs, want) {
			t.Errorf("no %q in\n%s", want, xattrs)
		}
	}
	if got := tool(t, "debugfs", "-R", "cat \"/second name\"", x.path); got != "root:x:0:0\n" {
		t.Errorf("content %q", got)
	}
	for name, want := range map[string]string{"null": "Device major/minor number: 01:03", "large": "Device major/minor number: 259:70000"} {
		if got := tool(t, "debugfs", "-R", "stat "+name, x.path); !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// Names with all bytes but "/" and NUL, in directories of one block, of an index, and of an
// index of two levels.
func TestWriterDirectories(t *testing.T) {
	x := newWriting(t, 0)
	for _, n := range []int{100, 2000, 60000} {
		dir := x.mkdir(Top, fmt.Sprint(n))
		ino := x.file(dir, "first", Attr{}, strings.NewReader("x"))
		for i := range n {
			name := fmt.Sprintf("%d\xff\n\"\\%s", i, strings.Repeat(string(rune('a'+i%26)), i%200))
			x.name(dir, name, ino, unix.S_IFREG)
		}
		x.mkdir(dir, "last")
	}
	x.finish(Size{})
	if stat := tool(t, "debugfs", "-R", "htree_dump /60000", x.path); !strings.Contains(stat, "Indirect levels: 1") {
		t.Errorf("the index is\n%.500s", stat)
	}
	if stat := tool(t, "debugfs", "-R", "stat /60000/last", x.path); !strings.Contains(stat, "Type: directory") {
		t.Errorf("stat:\n%s", stat)
	}
}

// Every other piece of a file is a hole: its extents make a tree of two levels.
func TestWriterSparseFile(t *testing.T) {
	x := newWriting(t, 0)
	const pieces = 1500
	piece := bytes.Repeat([]byte("0123456789abcdef"), holeBytes/16)
	hole := make([]byte, holeBytes)
	content := func() io.Reader {
		var parts []io.Reader
		for range pieces {
			parts = append(parts, bytes.NewReader(hole), bytes.NewReader(piece))
		}
		return io.MultiReader(append(parts, strings.NewReader("end"))...)
	}
	x.file(Top, "sparse", Attr{}, content())
	x.finish(Size{})
	h := sha256.New()
	io.Copy(h, content())
	out := filepath.Join(t.TempDir(), "out")
	tool(t, "debugfs", "-R", "dump /sparse "+out, x.path)
	if got, want := tool(t, "sha256sum", out), fmt.Sprintf("%x", h.Sum(nil)); !strings.HasPrefix(got, want) {
		t.Errorf("content has %s, want %s", got, want)
	}
	f, err := os.Open(x.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.Lookup("/sparse")
	if err != nil {
		t.Fatal(err)
	}
	read := sha256.New()
	if _, err := io.Copy(read, r.Content(s)); err != nil || !bytes.Equal(read.Sum(nil), h.Sum(nil)) {
		t.Errorf("the content that Reader gives has %x (%v)", read.Sum(nil), err)
	}
	var st unix.Stat_t
	if err := unix.Stat(x.path, &st); err != nil || st.Blocks*512 > (pieces+200)*holeBytes {
		t.Errorf("the filesystem takes %d bytes (%v)", st.Blocks*512, err)
	}
}

// A file that is taken away leaves its room to others: more is written in all than fits.
func TestWriterUnlink(t *testing.T) {
	const size = 256 << 20
	x := newWriting(t, size)
	content := bytes.Repeat([]byte("x"), 20<<20)
	var before int64
	for i := range 30 {
		ino, err := x.AddFile(Attr{Mode: unix.S_IFREG, Xattrs: []Xattr{{"user.x", bytes.Repeat([]byte("y"), 500)}}}, bytes.NewReader(content))
		if err != nil {
			t.Fatalf("file %d: %v", i, err)
		}
		if err := x.Link(ino); err != nil {
			t.Fatal(err)
		}
		if err := x.Unlink(ino); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			before = x.Bytes()
		}
	}
	if x.Bytes() != before {
		t.Errorf("%d bytes are taken, not %d", x.Bytes(), before)
	}
	x.file(Top, "kept", Attr{}, strings.NewReader("kept"))
	x.finish(Size{Bytes: size})
	var st unix.Stat_t
	if err := unix.Stat(x.path, &st); err != nil || st.Size != size || st.Blocks*512 > 16<<20 {
		t.Errorf("the file has %d bytes and takes %d (%v)", st.Size, st.Blocks*512, err)
	}
}

func TestWriterFull(t *testing.T) {
	x := newWriting(t, 128<<20)
	_, err := x.AddFile(Attr{Mode: unix.S_IFREG}, io.LimitReader(endless{}, 200<<20))
	if err != ErrFull {
		t.Errorf("error is %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestWriterManyLinks(t *testing.T) {
	x := newWriting(t, 0)
	ino, err := x.AddFile(Attr{Mode: unix.S_IFREG}, strings.NewReader(""))
	for range maxLinks {
		if err == nil {
			err = x.Link(ino)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Link(ino); err != ErrLinks {
		t.Errorf("error is %v", err)
	}
}

// The places that mkfs.ext4 uses are where Writer expects them, whatever the size; and what
// is made can grow, and hold a file of several groups.
func TestWriterSizes(t *testing.T) {
	for _, bytes := range []int64{128 << 20, 300 << 20, 2 << 30, 5 << 30, 40 << 30} {
		t.Run(fmt.Sprint(bytes), func(t *testing.T) {
			x := newWriting(t, 0)
			for i := range 30 {
				x.file(Top, fmt.Sprint(i), Attr{}, strings.NewReader("content"))
			}
			x.finish(Size{Bytes: bytes})
			if bytes > 10<<30 {
				return
			}
			tool(t, "resize2fs", x.path, fmt.Sprint(bytes/1024+1<<20)+"K")
			tool(t, "e2fsck", "-f", "-n", x.path)
		})
	}
}
