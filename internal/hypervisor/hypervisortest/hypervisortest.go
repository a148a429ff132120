// Package hypervisortest owns the suite that every hypervisor passes, on real machines
// whose guest is a program of a few hundred lines (see guest).
package hypervisortest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/jail"
)

// limit bounds every wait for a guest. It is no measure: a host may be busy.
const limit = 3 * time.Minute

// Suite is a hypervisor to test.
type Suite struct {
	// New makes the hypervisor, as a daemon that has just started would.
	New     func() hypervisor.Hypervisor
	Accel   hypervisor.Accel
	UserNet bool // it has the network mode user
	Saves   bool // its machines can be saved
	Jails   bool // as root it confines them, for which the tests' main function calls jail.Main

	Kernel    string
	Initramfs string // see Initramfs
}

// Run runs the suite. It boots four machines, one after the other.
func (s Suite) Run(t *testing.T) {
	t.Run("life", s.testLife)
	t.Run("restart by the guest", s.testRestart)
	t.Run("kill", s.testKill)
	t.Run("killed by others", s.testKilledByOthers)
	t.Run("failed launch", s.testFailedLaunch)
	t.Run("bad initramfs", s.testBadInitramfs)
	if s.Saves {
		t.Run("saved", s.testSaved)
	}
}

// Bundle finds the kernel and the modules' cpio of the runtime bundle, in
// $BANGER_RUNTIME_DIR or the checkout, and skips the test if there is none.
func Bundle(t testing.TB) (kernel, modules string) {
	t.Helper()
	dir := os.Getenv("BANGER_RUNTIME_DIR")
	if dir == "" {
		wd, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		for ; wd != "/"; wd = filepath.Dir(wd) {
			if _, err := os.Stat(filepath.Join(wd, "go.mod")); err == nil {
				dir = filepath.Join(wd, "runtime")
				break
			}
		}
	}
	kernel, modules = filepath.Join(dir, "kernels/debian/vmlinux"), filepath.Join(dir, "kernels/debian/modules.cpio")
	for _, path := range []string{kernel, modules} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("SKIP: there is no runtime bundle (%v); banger runtime build makes one", err)
		}
	}
	return kernel, modules
}

// EnvGuest names the built test guest, for hosts that have no Go.
const EnvGuest = "BANGER_TEST_GUEST"

// guest returns the path of the test guest, which it builds unless EnvGuest names it.
func guest(t testing.TB) string {
	t.Helper()
	if program := os.Getenv(EnvGuest); program != "" {
		return program
	}
	program := filepath.Join(t.TempDir(), "guest")
	err := host.Run(t.Context(), host.Command{
		Path: "go", Args: []string{"build", "-o", program, "banger/internal/hypervisor/hypervisortest/guest"},
		Env: append(os.Environ(), "CGO_ENABLED=0"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// Initramfs packs the test guest behind the modules. It returns the path.
func Initramfs(t testing.TB, modules string) string {
	t.Helper()
	init, err := os.ReadFile(guest(t))
	if err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(modules)
	if err != nil {
		t.Fatal(err)
	}
	out := bytes.NewBuffer(archive)
	w := cpio.NewWriter(out)
	if err := w.WriteHeader(&cpio.Header{Name: "init", Mode: cpio.TypeReg | 0o755, Links: 1, Size: int64(len(init))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(init); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initramfs")
	if err := os.WriteFile(path, out.Bytes(), 0o444); err != nil {
		t.Fatal(err)
	}
	return path
}

// Spec is a machine of two CPUs, 256 MiB and no devices beyond the usual, in dir.
func (s Suite) Spec(dir string) hypervisor.MachineSpec {
	return hypervisor.MachineSpec{
		VMID: "test-" + fmt.Sprint(os.Getpid()), Dir: dir, Jailed: s.Jails && jail.Check() == nil, Accel: s.Accel, CPUs: 2, MemoryBytes: 256 << 20,
		Kernel: s.Kernel, Initramfs: s.Initramfs,
	}
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// launch starts a machine that is certainly gone when the test ends.
func (s Suite) launch(t *testing.T, spec hypervisor.MachineSpec) hypervisor.Machine {
	t.Helper()
	m, err := s.New().Launch(bounded(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	process := m.Record().Process
	t.Cleanup(func() {
		if t.Failed() {
			explain(t, m)
		}
		m.Close()
		h, err := process.Open()
		if err != nil {
			return
		}
		defer h.Close()
		if err := h.Signal(unix.SIGKILL); err == nil {
			<-h.Done()
		}
	})
	return m
}

// explain tells how a machine fared whose test has failed. One that has just dropped its
// connections gets the time to end.
func explain(t *testing.T, m hypervisor.Machine) {
	const grace, most = 2 * time.Second, 2 << 10
	select {
	case <-m.Done():
		t.Logf("the machine ended: %s", m.Exit().Reason)
	case <-time.After(grace):
		t.Log("the machine runs")
	}
	log := logOf(t, m)
	t.Logf("its console said last: %q", log[max(0, len(log)-most):])
}

// line is a conversation with the guest.
type line struct {
	net.Conn
	in *bufio.Reader
}

// dial connects to the channel and waits until the guest answers. What it still said to
// an earlier connection is skipped.
func dial(t *testing.T, m hypervisor.Machine) line {
	t.Helper()
	conn, err := m.Channel(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	l := line{conn, bufio.NewReader(conn)}
	token := rand.Text()
	l.say(t, "\necho "+token)
	for l.hear(t) != token {
	}
	return l
}

func (l line) say(t *testing.T, words string) {
	t.Helper()
	if _, err := io.WriteString(l, words+"\n"); err != nil {
		t.Fatal(err)
	}
}

func (l line) hear(t *testing.T) string {
	t.Helper()
	s, err := l.in.ReadString('\n')
	if err != nil {
		t.Fatalf("the guest said %q, then %v", s, err)
	}
	return strings.TrimSuffix(s, "\n")
}

func (l line) ask(t *testing.T, words string) string {
	t.Helper()
	l.say(t, words)
	return l.hear(t)
}

func logOf(t *testing.T, m hypervisor.Machine) string {
	t.Helper()
	r, err := m.Console().Log(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func waitDone(t *testing.T, m hypervisor.Machine) {
	t.Helper()
	select {
	case <-m.Done():
	case <-bounded(t).Done():
		t.Fatal("the machine does not end")
	}
	if e := m.Exit(); e.Reason == "" || e.At.IsZero() {
		t.Errorf("exit %+v", e)
	}
	if _, err := m.Record().Process.Open(); errs.KindOf(err) != errs.NotFound {
		t.Errorf("the process is still there: %v", err)
	}
}

// wantOnlyLogs fails the test if a machine has left more than its logs in dir, or a cgroup.
func wantOnlyLogs(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".log") && !strings.HasSuffix(e.Name(), ".log.1") {
			t.Errorf("%s is left", e.Name())
		}
	}
	groups, err := jail.Groups(filepath.Dir(dir))
	if err != nil || slices.ContainsFunc(groups, func(o host.Object) bool { return o.Path == filepath.Base(dir) }) {
		t.Errorf("its cgroup is left: %v, %v", groups, err)
	}
}

// longDir is a directory in which no socket's path fits the kernel's 108 bytes.
func longDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-", 20))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// testLife follows one machine from its launch, through a change of daemons, to its end.
func (s Suite) testLife(t *testing.T) {
	spec := s.Spec(longDir(t))
	disk := filepath.Join(t.TempDir(), `disk "a",b=c`)
	if err := os.WriteFile(disk, append([]byte("first words\n"), make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	spec.Disks = []hypervisor.Disk{{Path: disk, Format: "raw", ReadOnly: true}}
	if s.UserNet {
		spec.NICs = []hypervisor.NIC{{Mode: hypervisor.NICUser, MAC: "52:54:00:12:34:56"}}
	}
	spec.Cmdline = []string{"banger.test=1"}
	m := s.launch(t, spec)

	l := dial(t, m)
	if got := l.ask(t, "echo one two"); got != "one two" {
		t.Errorf("echo: %q", got)
	}
	if got := l.ask(t, "disk vda"); got != "first words <nil>" {
		t.Errorf("disk: %q", got)
	}
	if got := l.ask(t, "cmdline"); !strings.Contains(got, " banger.test=1") {
		t.Errorf("kernel arguments: %q", got)
	}
	testConfined(t, m, spec)
	s.testSecondConnection(t, m, l)
	testConsole(t, m)
	testPause(t, m)

	record := m.Record()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
		t.Fatal("the machine ended with its daemon")
	default:
	}
	s.testForeignRecords(t, record)
	adopted, err := s.New().Adopt(bounded(t), record)
	if err != nil {
		t.Fatal(err)
	}
	defer adopted.Close()
	if adopted.Record() != record {
		t.Errorf("adopted as %+v, was %+v", adopted.Record(), record)
	}
	if got := logOf(t, adopted); !strings.Contains(got, "guest: up") || !strings.Contains(got, "[banger: ") {
		t.Errorf("the log after adoption has no start or no note of the gap: %q", got)
	}
	testConsole(t, adopted)
	testPause(t, adopted)
	dial(t, adopted).say(t, "poweroff")
	waitDone(t, adopted)
	if e := adopted.Exit(); !e.Clean {
		t.Errorf("a machine that was powered off by its guest: %+v", e)
	}
	if _, err := adopted.Channel(t.Context()); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("the channel of a machine that is gone: %v", err)
	}
	if err := adopted.Kill(t.Context()); err != nil {
		t.Errorf("kill of a machine that is gone: %v", err)
	}
	wantOnlyLogs(t, spec.Dir)
	if _, err := s.New().Adopt(t.Context(), record); errs.KindOf(err) != errs.NotFound {
		t.Errorf("adoption of a machine that is gone: %v", err)
	}
}

// testConfined looks at the process of a machine from outside.
func testConfined(t *testing.T, m hypervisor.Machine, spec hypervisor.MachineSpec) {
	s, err := jail.Look(m.Record().Process)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Seccomp || !s.NoNewPrivs {
		t.Errorf("its system calls are not filtered, or a program can give it privileges: %+v", s)
	}
	if !spec.Jailed {
		return
	}
	if id := jail.ID(spec.VMID); s.UID != id || s.GID != id || s.Capabilities != 0 {
		t.Errorf("it runs as %d, not %d, and may do %#x", s.UID, id, s.Capabilities)
	}
	if l := s.Limits; !slices.Contains(s.Namespaces, "mnt") || l.FileBytes <= 0 || l.OpenFiles <= 0 || l.Processes <= 0 {
		t.Errorf("it sees the host's files, or takes what it likes: %+v", s)
	}
	if lacking, _ := jail.Lacking(); lacking == "" && (s.Limits.MemoryBytes <= spec.MemoryBytes || s.Limits.CPUs <= 0) {
		t.Errorf("it has no limit of memory or CPUs: %+v", s)
	}
	// The root is a filesystem of its own: what it has are the files of the machine.
	root := fmt.Sprintf("/proc/%d/root", m.Record().Process.PID)
	for _, path := range []string{"etc/passwd", "proc/self", "bin/sh", "root", "home", "sys/kernel", "dev/zero"} {
		if _, err := os.Stat(filepath.Join(root, path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it sees /%s: %v", path, err)
		}
	}
}

// testSecondConnection has a second connection wait for the first to close.
func (s Suite) testSecondConnection(t *testing.T, m hypervisor.Machine, first line) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := m.Channel(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("a second connection: %v, %v", c, err)
	}
	got := make(chan error, 1)
	go func() {
		c, err := m.Channel(t.Context())
		if err == nil {
			err = c.Close()
		}
		got <- err
	}()
	if answer := first.ask(t, "echo still mine"); answer != "still mine" {
		t.Errorf("the first connection hears %q", answer)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if err := <-got; err != nil {
		t.Errorf("the second connection: %v", err)
	}
}

// testConsole prints, types, and follows.
func testConsole(t *testing.T, m hypervisor.Machine) {
	l := dial(t, m)
	defer l.Close()
	var attached [2]*bufio.Reader
	var keyboard io.Writer
	for i := range attached {
		a, err := m.Console().Attach()
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		attached[i], keyboard = bufio.NewReader(a), a
	}
	followed, err := m.Console().Log(bounded(t), true)
	if err != nil {
		t.Fatal(err)
	}
	defer followed.Close()

	l.ask(t, "print a line for all")
	l.say(t, "readline")
	if _, err := io.WriteString(keyboard, "typed by hand\r"); err != nil {
		t.Fatal(err)
	}
	if got := l.hear(t); got != "typed by hand" {
		t.Errorf("typed on the console: %q", got)
	}
	for i, r := range []*bufio.Reader{attached[0], attached[1], bufio.NewReader(followed)} {
		for {
			text, err := r.ReadString('\n')
			if err != nil {
				t.Fatalf("reader %d: %v", i, err)
			}
			if strings.TrimSpace(text) == "a line for all" {
				break
			}
		}
	}
	// Far more than any buffer on the way: the guest must not be held up by readers who
	// don't read. QEMU sends bytes one by one, and a socket's buffer holds some 300 sends.
	if got := l.ask(t, "flood 5000"); got != "ok" {
		t.Errorf("flood: %q", got)
	}
}

// testPause shows that a paused machine goes on when it is told to.
func testPause(t *testing.T, m hypervisor.Machine) {
	l := dial(t, m)
	defer l.Close()
	for range 2 { // pausing and resuming twice is no error
		if err := m.Pause(bounded(t)); err != nil {
			t.Fatal(err)
		}
	}
	l.say(t, "echo after the pause")
	for range 2 {
		if err := m.Resume(bounded(t)); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.hear(t); got != "after the pause" {
		t.Errorf("after a pause: %q", got)
	}
}

// testForeignRecords tries to adopt what is not the machine that was recorded.
func (s Suite) testForeignRecords(t *testing.T, record hypervisor.Record) {
	other := record
	other.VMID = "another"
	if m, err := s.New().Adopt(bounded(t), other); errs.KindOf(err) != errs.Conflict {
		t.Errorf("a machine of another name was adopted: %v, %v", m, err)
	}
	reused := record
	reused.Process.StartTicks++
	reused.Dir = t.TempDir()
	if m, err := s.New().Adopt(bounded(t), reused); errs.KindOf(err) != errs.NotFound {
		t.Errorf("another process with the same pid was adopted: %v, %v", m, err)
	}
}

// testRestart has a guest restart and another panic: both end the process.
func (s Suite) testRestart(t *testing.T) {
	for _, word := range []string{"reboot", "panic"} {
		spec := s.Spec(t.TempDir())
		m := s.launch(t, spec)
		dial(t, m).say(t, word)
		waitDone(t, m)
		if e := m.Exit(); !strings.Contains(e.Reason, "restarted by the guest") {
			t.Errorf("%s: exit %+v", word, e)
		}
		wantOnlyLogs(t, spec.Dir)
		if word == "panic" && !strings.Contains(logOf(t, m), "Kernel panic") {
			t.Errorf("the log has no panic: %q", logOf(t, m))
		}
	}
}

func (s Suite) testKill(t *testing.T) {
	spec := s.Spec(t.TempDir())
	m := s.launch(t, spec)
	follow, err := m.Console().Log(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer follow.Close()
	conn, err := m.Channel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := m.Kill(bounded(t)); err != nil {
		t.Fatal(err)
	}
	waitDone(t, m)
	if e := m.Exit(); e.Clean || !strings.Contains(e.Reason, "killed on request") {
		t.Errorf("exit %+v", e)
	}
	if _, err := io.Copy(io.Discard, follow); err != nil {
		t.Errorf("following the log to its end: %v", err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the channel of a killed machine: %d, %v", n, err)
	}
	wantOnlyLogs(t, spec.Dir)
	if err := m.Pause(t.Context()); err == nil {
		t.Error("a killed machine was paused")
	}
}

func (s Suite) testKilledByOthers(t *testing.T) {
	spec := s.Spec(t.TempDir())
	m := s.launch(t, spec)
	h, err := m.Record().Process.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitDone(t, m)
	if e := m.Exit(); e.Clean || !strings.Contains(e.Reason, "signal 9") {
		t.Errorf("exit %+v", e)
	}
	wantOnlyLogs(t, spec.Dir)
}
