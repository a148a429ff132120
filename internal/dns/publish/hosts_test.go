package publish

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/dns"
	"banger/internal/errs"
)

func record(name, addr, id string) dns.Record {
	return dns.Record{Name: name, Addr: netip.MustParseAddr(addr), ID: id}
}

var two = []dns.Record{record("db", "172.30.0.3", "bb"), record("web", "172.30.0.2", "aa")}

const block2 = `# begin of banger /s: its VMs' names; bangerd keeps these lines
172.30.0.3	db.vm	# banger /s bb
172.30.0.2	web.vm	# banger /s aa
# end of banger /s
`

func TestEdit(t *testing.T) {
	b := block{"/s"}
	other := strings.ReplaceAll(block2, "/s", "/other")
	for _, tc := range []struct {
		name, text string
		records    []dns.Record
		want       string
	}{
		{"none into nothing", "", nil, ""},
		{"into nothing", "", two, block2},
		{"behind others", "127.0.0.1 localhost\n", two, "127.0.0.1 localhost\n" + block2},
		{"again", "127.0.0.1 localhost\n" + block2, two, "127.0.0.1 localhost\n" + block2},
		{"in its place", "a\n" + block2 + "b\r\n", two[:1], "a\n" + strings.Replace(block2, "172.30.0.2\tweb.vm\t# banger /s aa\n", "", 1) + "b\r\n"},
		{"away", "a\n" + block2 + "b", nil, "a\nb"},
		{"another banger's", other, two, other + block2},
		{"away beside another banger's", other + block2, nil, other},
		{"others' in the middle", strings.Replace(block2, "172.30.0.2", "10.0.0.1 x # banger\n172.30.0.2", 1), nil, "10.0.0.1 x # banger\n"},
		{"without its end", strings.TrimSuffix(block2, "# end of banger /s\n") + "10.0.0.1 x\n", nil, "10.0.0.1 x\n"},
		{"without its begin", block2[strings.Index(block2, "\n")+1:] + "10.0.0.1 x\n", nil, "10.0.0.1 x\n"},
		{"twice", block2 + "x\n" + block2, nil, "x\n"},
		{"a comment like ours", "1.2.3.4 a\t# banger /s b c\n", nil, "1.2.3.4 a\t# banger /s b c\n"},
	} {
		if got := b.edit(tc.text, tc.records); got != tc.want {
			t.Errorf("%s: got\n%q, want\n%q", tc.name, got, tc.want)
		}
	}
	// A file without a final line end has none after us either, unless others wrote behind us.
	with := b.edit("127.0.0.1 localhost", two)
	if got := b.edit(with, nil); got != "127.0.0.1 localhost" {
		t.Errorf("there and away: %q", got)
	}
	if got := b.edit(b.edit(with, two[:1]), nil); got != "127.0.0.1 localhost" {
		t.Errorf("there, changed and away: %q", got)
	}
	if got := b.edit(with+"10.0.0.1 x\n", nil); got != "127.0.0.1 localhost\n10.0.0.1 x\n" {
		t.Errorf("others wrote behind: %q", got)
	}
}

// However a file looks, our lines go in and out and leave the others byte for byte, and the
// second edit changes nothing.
func FuzzEdit(f *testing.F) {
	for _, text := range []string{"", "127.0.0.1 localhost", "a\n", "\n\n", block2, "x" + block2, block2 + "y", "\r\n", "a\x00b\n"} {
		f.Add(text, "/s")
	}
	f.Fuzz(func(t *testing.T, text, owner string) {
		b := block{owner}
		clean := b.edit(text, nil)
		with := b.edit(clean, two)
		if again := b.edit(with, two); again != with {
			t.Errorf("again: %q, then %q", with, again)
		}
		if away := b.edit(with, nil); away != clean {
			t.Errorf("%q became %q", clean, away)
		}
		if again := b.edit(clean, nil); again != clean {
			t.Errorf("clean: %q, then %q", clean, again)
		}
		for line := range strings.Lines(text) {
			bare := strings.TrimSuffix(line, "\n")
			if !strings.Contains(bare, "banger") && !strings.Contains(with, bare) {
				t.Errorf("the line %q is lost", bare)
			}
		}
	})
}

func hostsFile(t *testing.T, text string) *Hosts {
	t.Helper()
	h := &Hosts{File: filepath.Join(t.TempDir(), "hosts"), Owner: "/s"}
	if err := os.WriteFile(h.File, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return h
}

func content(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestHosts(t *testing.T) {
	h := hostsFile(t, "127.0.0.1 localhost\n")
	if err := os.Chmod(h.File, 0o640|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(h.File, 12, 34); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(h.File, 0o640|os.ModeSetgid); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.Stat(h.File)
	if err != nil {
		t.Fatal(err)
	}
	// What one that was killed has left is in nobody's way.
	if err := os.WriteFile(filepath.Join(filepath.Dir(h.File), ".hosts.banger"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.Publish(t.Context(), State{Records: two}); err != nil {
			t.Fatal(err)
		}
		if got := content(t, h.File); got != "127.0.0.1 localhost\n"+block2 {
			t.Errorf("got %q", got)
		}
	}
	lines, err := h.Lines()
	if err != nil || len(lines) != 2 || lines[0] != two[0] || lines[1] != two[1] {
		t.Errorf("lines: %v, %v", lines, err)
	}
	if err := h.Withdraw(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(h.File)
	if err != nil {
		t.Fatal(err)
	}
	was, is := before.Sys().(*syscall.Stat_t), after.Sys().(*syscall.Stat_t)
	if content(t, h.File) != "127.0.0.1 localhost\n" || was.Mode != is.Mode || was.Uid != is.Uid || was.Gid != is.Gid {
		t.Errorf("after all: %q, %v of %d:%d", content(t, h.File), after.Mode(), is.Uid, is.Gid)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(h.File), ".*")); left != nil {
		t.Errorf("left behind: %q", left)
	}
}

func TestHostsThatNobodyChanges(t *testing.T) {
	h := hostsFile(t, "127.0.0.1 localhost\n")
	before, _ := os.Stat(h.File)
	if err := h.Withdraw(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(h.File); err != nil || !os.SameFile(before, after) || !after.ModTime().Equal(before.ModTime()) {
		t.Error("a file without lines of ours was touched")
	}
	h.File += ".none"
	if err := h.Withdraw(t.Context()); err != nil {
		t.Errorf("no file: %v", err)
	}
	if err := h.Publish(t.Context(), State{Records: two}); err == nil || !strings.Contains(err.Error(), h.File) {
		t.Errorf("names into no file: %v", err)
	}
}

func TestHostsFilesThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, h *Hosts)
		want  string
	}{
		"link": {func(t *testing.T, h *Hosts) {
			must(t, os.Rename(h.File, h.File+".real"))
			must(t, os.Symlink(h.File+".real", h.File))
		}, "is a symbolic link to"},
		"huge":      {func(t *testing.T, h *Hosts) { must(t, os.Truncate(h.File, maxFile+1)) }, "longer than 1 MiB"},
		"nearly":    {func(t *testing.T, h *Hosts) { must(t, os.Truncate(h.File, maxFile-10)) }, "longer than 1 MiB"},
		"directory": {func(t *testing.T, h *Hosts) { must(t, os.Remove(h.File)); must(t, os.Mkdir(h.File, 0o755)) }, "no regular file"},
		"pipe":      {func(t *testing.T, h *Hosts) { must(t, os.Remove(h.File)); must(t, unix.Mkfifo(h.File, 0o644)) }, "no regular file"},
		"immutable": {func(t *testing.T, h *Hosts) {
			f, err := os.Open(h.File)
			must(t, err)
			if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutable); err != nil {
				t.Skipf("SKIP: no file can be made immutable here: %v", err)
			}
			t.Cleanup(func() {
				must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0))
				f.Close()
			})
		}, "immutable"},
	} {
		t.Run(name, func(t *testing.T) {
			h := hostsFile(t, "127.0.0.1 localhost\n")
			tc.spoil(t, h)
			err := h.Publish(t.Context(), State{Records: two})
			if err == nil || !strings.Contains(err.Error(), tc.want) || errs.HintOf(err) == "" {
				t.Errorf("got %v, hint %q", err, errs.HintOf(err))
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(h.File), ".*")); left != nil {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// In a container the hosts file is a mount, which can't be replaced.
func TestHostsFileThatIsAMount(t *testing.T) {
	h := hostsFile(t, "127.0.0.1 localhost\n")
	real := filepath.Join(t.TempDir(), "real")
	must(t, os.WriteFile(real, []byte("127.0.0.1 localhost\n"), 0o644))
	if err := unix.Mount(real, h.File, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("SKIP: nothing can be mounted here: %v", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(h.File, 0)) })
	must(t, h.Publish(t.Context(), State{Records: two}))
	if got := content(t, real); got != "127.0.0.1 localhost\n"+block2 {
		t.Errorf("got %q", got)
	}
	must(t, h.Publish(t.Context(), State{Records: two[:1]}))
	// Someone writes behind our lines.
	must(t, os.WriteFile(real, []byte(content(t, real)+"10.0.0.1 x\n"), 0o644))
	must(t, h.Withdraw(t.Context()))
	if got := content(t, real); got != "127.0.0.1 localhost\n10.0.0.1 x\n" {
		t.Errorf("got %q", got)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(h.File), ".*")); left != nil {
		t.Errorf("left behind: %q", left)
	}
}

func TestHostsFileThatAnotherLocks(t *testing.T) {
	h := hostsFile(t, "127.0.0.1 localhost\n")
	f, err := os.Open(h.File)
	must(t, err)
	defer f.Close()
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := h.Publish(ctx, State{Records: two}); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("got %v", err)
	}
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	must(t, h.Publish(t.Context(), State{Records: two}))
}

// Several bangers edit one file at once, and nobody's lines are lost.
func TestManyEditors(t *testing.T) {
	h := hostsFile(t, "127.0.0.1 localhost\n")
	done := make(chan error)
	owners := []string{"/a", "/b", "/c", "/d"}
	for _, o := range owners {
		go func() {
			var err error
			mine := &Hosts{File: h.File, Owner: o}
			for i := 0; i < 10 && err == nil; i++ {
				if err = mine.Publish(context.Background(), State{Records: two[:1+i%2]}); err == nil && i < 9 {
					err = mine.Withdraw(context.Background())
				}
			}
			done <- err
		}()
	}
	for range owners {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for _, o := range owners {
		mine := &Hosts{File: h.File, Owner: o}
		if lines, err := mine.Lines(); err != nil || len(lines) != 2 {
			t.Errorf("%s: %v, %v", o, lines, err)
		}
		must(t, mine.Withdraw(t.Context()))
	}
	if got := content(t, h.File); got != "127.0.0.1 localhost\n" {
		t.Errorf("got %q", got)
	}
}
