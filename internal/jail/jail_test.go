package jail

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
)

// The tests confine their own program, which then does what envProbe says.
func TestMain(m *testing.M) {
	Main()
	if probe := os.Getenv(envProbe); probe != "" {
		os.Exit(runProbe(probe))
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if err := Check(); err != nil {
		t.Skipf("SKIP: %v", err)
	}
}

// cell is a jail with a disk of its own and one that it may only read.
type cell struct {
	Jail
	own, base string
}

func newCell(t *testing.T, name string) cell {
	t.Helper()
	dir := t.TempDir()
	c := cell{own: filepath.Join(dir, name, "own"), base: filepath.Join(dir, "base")}
	if err := os.Mkdir(filepath.Dir(c.own), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{c.own, c.base} {
		if err := os.WriteFile(path, []byte("secret of "+filepath.Base(path)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.Jail = Jail{Home: filepath.Dir(c.own), ID: ID(name), Files: []File{{Path: c.base}, {Path: c.own, Write: true}, {Path: "/dev/null"}},
		Limits: Limits{MemoryBytes: 512 << 20, CPUs: 1, Processes: 64, FileBytes: 1 << 20, OpenFiles: 64}}
	return c
}

// start has a probe run in the jail, and returns once it is there. It is ended with the test.
func (c cell) start(t *testing.T, probe string, arg any) (child *host.Child, out *os.File) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(arg)
	if err != nil {
		t.Fatal(err)
	}
	out, err = os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	child, err = c.Detach(host.Detached{Path: program, Env: []string{envProbe + "=" + probe, envArgument + "=" + string(text)}, Dir: "/", Log: out, Files: []*os.File{w}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = child.Handle().Signal(unix.SIGKILL)
		<-child.Done()
		child.Close()
		if err := RemoveGroup(c.Home); err != nil {
			t.Error(err)
		}
		out.Close()
	})
	if _, err := r.Read(make([]byte, 1)); err != nil {
		said, _ := os.ReadFile(out.Name())
		t.Fatalf("the probe did not start: %v: %s", err, said)
	}
	return child, out
}

// run has a probe run in the jail to its end and reads what it found.
func (c cell) run(t *testing.T, probe string, arg, found any) {
	t.Helper()
	child, out := c.start(t, probe, arg)
	<-child.Done()
	text, err := os.ReadFile(out.Name())
	if err == nil {
		err = json.Unmarshal(text, found)
	}
	if err != nil {
		t.Fatalf("%v: %s; it ended with %v", err, text, child.State())
	}
}

// A daemon whose own files are to be for nobody else confines as any other.
func TestAStrictUmask(t *testing.T) {
	needRoot(t)
	c := newCell(t, "0123456789ab")
	old := unix.Umask(0o077)
	child, _ := c.start(t, "wait", nil)
	unix.Umask(old)
	for _, dir := range []string{"/", filepath.Dir(c.own)} {
		info, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", child.Process.PID, dir))
		if err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s is %v there, %v", dir, info, err)
		}
	}
}

// What a program finds that is another's by now: it looks for a way out.
func TestNoWayOut(t *testing.T) {
	needRoot(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	peer, mine := newCell(t, "peer"), newCell(t, "mine")
	neighbour, _ := peer.start(t, "wait", nil)
	var got view
	mine.run(t, "look", target{PID: neighbour.Process.PID, Own: mine.own, Base: mine.base, Peer: peer.own, Listener: listener.Addr().String()}, &got)

	if got.Wrote != "" || got.Read != "secret of base" {
		t.Errorf("its own file, written: %q; its base has %q", got.Wrote, got.Read)
	}
	if text, err := os.ReadFile(mine.own); err != nil || string(text) != "its own" {
		t.Errorf("its own file has %q, %v", text, err)
	}
	for what, err := range got.Refused {
		if !slices.Contains([]string{"EPERM", "EACCES", "ENOENT", "EROFS", "ENETUNREACH", "EMFILE", "EFBIG"}, err) {
			t.Errorf("%s: %q", what, err)
		}
	}
	if len(got.Refused) != 18 {
		t.Errorf("%d things were tried: %v", len(got.Refused), got.Refused)
	}
	// Nothing but what leads to its files.
	if want := []string{"base", "own", "null"}; !containsAll(got.Files, want) {
		t.Errorf("it sees %q, without some of %q", got.Files, want)
	}
	for _, path := range got.Files {
		if !strings.HasPrefix(path, "/dev/null") && !strings.HasPrefix(path, "/lib") && !strings.HasPrefix(path, "/etc/ld.so.cache") &&
			!strings.Contains(path, ".test") && path != mine.own && path != mine.base {
			t.Errorf("it sees %s", path)
		}
	}
	if !slices.Equal(got.Interfaces, []string{"lo"}) {
		t.Errorf("its network has %q", got.Interfaces)
	}
	if _, err := neighbour.Process.Open(); err != nil {
		t.Errorf("its neighbour: %v", err)
	}
	if text, err := os.ReadFile(peer.own); err != nil || string(text) != "secret of own" {
		t.Errorf("its neighbour's file has %q, %v", text, err)
	}
}

func containsAll(paths, names []string) bool {
	for _, name := range names {
		if !slices.ContainsFunc(paths, func(path string) bool { return filepath.Base(path) == name }) {
			return false
		}
	}
	return true
}

// What the kernel says of a process that is confined, and of its files.
func TestFromOutside(t *testing.T) {
	needRoot(t)
	a, b := newCell(t, "a"), newCell(t, "b")
	for _, c := range []cell{a, b} {
		child, _ := c.start(t, "wait", nil)
		s, err := Look(child.Process)
		if err != nil {
			t.Fatal(err)
		}
		if s.UID != c.ID || s.GID != c.ID || s.Capabilities != 0 || !s.NoNewPrivs {
			t.Errorf("%+v", s)
		}
		if !slices.Equal(s.Namespaces, []string{"mnt", "net", "ipc"}) || s.Limits.FileBytes != 1<<20 || s.Limits.OpenFiles != 64 || s.Limits.Processes != 64 {
			t.Errorf("%+v", s)
		}
		lacking, why := Lacking()
		for limit, got := range map[string]int64{"memory": s.Limits.MemoryBytes >> 29, "cpu": int64(s.Limits.CPUs)} {
			if want := int64(1); strings.Contains(lacking, limit) != (why != "" && got != want) {
				t.Errorf("%s: limited to %d, where the host lacks %q", limit, got, lacking)
			}
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", child.Process.PID))
		if err != nil {
			t.Fatal(err)
		}
		for _, none := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			if !strings.Contains(string(status), none+":\t0000000000000000\n") {
				t.Errorf("it has a %s", none)
			}
		}
		var st unix.Stat_t
		if err := unix.Stat(c.own, &st); err != nil || int(st.Uid) != c.ID || st.Mode&0o777 != 0o600 {
			t.Errorf("its file is of %d, with %o, %v", st.Uid, st.Mode, err)
		}
	}
	if a.ID == b.ID {
		t.Error("two jails have one uid")
	}
	found, err := Groups(filepath.Dir(a.Home))
	if lacking, _ := Lacking(); err != nil || lacking == "" && (len(found) != 1 || found[0].Path != "a") {
		t.Errorf("cgroups: %+v, %v", found, err)
	}
}

// Bombs of threads and files stay inside.
func TestBombs(t *testing.T) {
	needRoot(t)
	c := newCell(t, "bomber")
	var started int
	c.run(t, "fork", nil, &started)
	if started >= c.Limits.Processes || started == 0 {
		t.Errorf("%d processes were started, %d threads allowed", started, c.Limits.Processes)
	}
}

// What takes more memory than its own is ended, and nobody else is.
func TestMemoryBomb(t *testing.T) {
	needRoot(t)
	if lacking, why := Lacking(); strings.Contains(lacking, "memory") {
		t.Skipf("SKIP: memory can't be limited: %s", why)
	}
	c, peer := newCell(t, "bomber"), newCell(t, "peer")
	c.Limits.MemoryBytes = 64 << 20
	neighbour, _ := peer.start(t, "wait", nil)
	child, out := c.start(t, "memory", nil)
	<-child.Done()
	if state := child.State(); state.Success() || !strings.Contains(state.String(), "killed") {
		text, _ := os.ReadFile(out.Name())
		t.Errorf("it ended with %v: %s", state, text)
	}
	if _, err := neighbour.Process.Open(); err != nil {
		t.Errorf("its neighbour: %v", err)
	}
}

// A jail that can't be made says why, and nothing runs.
func TestWhatCantBeConfined(t *testing.T) {
	needRoot(t)
	c := newCell(t, "none")
	above := filepath.Dir(filepath.Dir(c.base)) // the test's own, which it alone enters
	if err := os.Chmod(above, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Detach(host.Detached{Path: "sleep", Dir: "/"}); errs.KindOf(err) != errs.Unavailable || !strings.Contains(errs.HintOf(err), "chmod a+r") {
		t.Errorf("a file that only its owner may read, and others could get at: %v", err)
	}
	if info, err := os.Stat(c.base); err != nil || info.Mode() != 0o600 {
		t.Errorf("its mode: %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(above, 0o700); err != nil {
		t.Fatal(err)
	}
	c.Files = append(c.Files, File{Path: filepath.Join(c.Home, "not there")})
	if _, err := c.Detach(host.Detached{Path: "sleep", Dir: "/"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := c.Detach(host.Detached{Path: "/etc/passwd", Dir: "/"}); err == nil {
		t.Error("a program that is none was started")
	}
	if _, err := c.Detach(host.Detached{Path: "no-such-program", Dir: "/"}); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("a program that is not there: %v", err)
	}
	if found, err := Groups(filepath.Dir(c.Home)); err != nil || len(found) > 0 {
		t.Errorf("cgroups: %+v, %v", found, err)
	}
}

func TestRemoveGroupTwice(t *testing.T) {
	home := filepath.Join(t.TempDir(), "home")
	for range 2 {
		if err := RemoveGroup(home); err != nil {
			t.Error(err)
		}
	}
}

func TestIDs(t *testing.T) {
	seen := map[int]bool{}
	for i := range 1000 {
		for _, name := range []string{fmt.Sprintf("%07x00000", 268435*i), fmt.Sprintf("test-%d", i)} {
			id := ID(name)
			if id < 0x70000000 || id > 0x7fffffff || seen[id] {
				t.Errorf("%s is given as %#x", name, id)
			}
			seen[id] = true
		}
	}
	if id := ID("abcdef123456"); id != 0x7abcdef1 {
		t.Errorf("%#x", id)
	}
}

func TestLibraries(t *testing.T) {
	const list = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n" +
		"\tlibgone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibodd.so => /opt/a b/libodd (1).so (0x1)\n"
	want := []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2", "/opt/a b/libodd (1).so"}
	if got := libraries(list); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#! /bin/sleep 1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := needs(script); err != nil || !containsAll(got, []string{"script", "sleep", "libc.so.6"}) {
		t.Errorf("a script needs %q, %v", got, err)
	}
	if got, err := needs("/bin/sleep"); err != nil || !containsAll(got, []string{"sleep", "libc.so.6"}) {
		t.Errorf("sleep needs %q, %v", got, err)
	}
}
