// Package e2e drives the three built programs as a user does, with real VMs. Each test has
// a banger of its own: a state directory, a daemon, its VMs. At a test's end all of them
// must be gone from the host.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
)

var bin = "" // directory of the built programs

func TestMain(m *testing.M) {
	root, err := filepath.Abs("..")
	if err != nil {
		panic(err)
	}
	if bin = os.Getenv("BANGER_BIN"); bin == "" { // set where there is no checkout, as in the lab
		bin = filepath.Join(root, "build", "bin")
	}
	if os.Getenv(inside) != "" {
		os.Exit(runInside(m))
	}
	if os.Getenv("BANGER_BIN") == "" {
		build := exec.Command("make", "--no-print-directory", "-C", root, "build")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "make build: %v\n%s", err, out)
			os.Exit(1)
		}
	}
	if os.Getenv("BANGER_RUNTIME_DIR") == "" {
		os.Setenv("BANGER_RUNTIME_DIR", filepath.Join(root, "runtime"))
	}
	os.Exit(outside(m))
}

// limit bounds one command, on a host that runs other tests beside.
const limit = 4 * time.Minute

// banger is one banger of a test's.
type banger struct {
	t     *testing.T
	bin   string // directory of its programs
	state string
	env   []string
	user  *syscall.Credential // nil: the test's own
}

// newBanger returns a banger with an empty state directory.
func newBanger(t *testing.T) *banger {
	t.Helper()
	if _, err := os.Stat(filepath.Join(os.Getenv("BANGER_RUNTIME_DIR"), "bundle.json")); err != nil {
		t.Skipf("SKIP: there is no runtime bundle (%v); make guests builds it", err)
	}
	return bangerIn(t, t.TempDir())
}

func bangerIn(t *testing.T, state string) *banger {
	t.Helper()
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := &banger{t: t, bin: bin, state: state, env: append(os.Environ(), "BANGER_STATE_DIR="+state, "XDG_CONFIG_HOME="+t.TempDir(), "BANGER_SOCKET=",
		"BANGER_HOSTS_FILE="+hosts,
		"BANGER_TEMPLATE_BUDGET=0")} // else machines come and go behind the test's back; see warm
	t.Cleanup(b.close)
	return b
}

// close removes every VM, ends the daemon, and looks for anything left behind.
func (b *banger) close() {
	t := b.t
	if t.Failed() {
		if log, err := os.ReadFile(filepath.Join(b.state, "bangerd.log")); err == nil {
			t.Logf("bangerd.log:\n%s", log)
		}
	}
	if names := strings.Fields(b.ok("ls", "-aq")); len(names) > 0 {
		b.ok(append([]string{"rm", "-f"}, names...)...)
	}
	if left := b.machines(); left != nil {
		t.Errorf("processes left behind: %q", left)
	}
	if left, err := os.ReadDir(filepath.Join(b.state, "vms")); err == nil && len(left) > 0 {
		t.Errorf("directories left behind: %v", left)
	}
	b.census()
	if left := networkLeft(); left != nil {
		t.Errorf("left of the network: %q", left)
	}
	b.ok("daemon", "stop")
	if left := b.processes(""); left != nil {
		t.Errorf("processes left behind: %q", left)
	}
	if sockets := b.sockets(); sockets != nil {
		t.Errorf("sockets left behind: %v", sockets)
	}
}

// census asks banger itself what is on the host that should not be, and the reverse.
func (b *banger) census() {
	b.t.Helper()
	if r := b.run("", "system", "census"); r.code != 0 || r.out != "" {
		b.t.Errorf("the census finds, with exit code %d:\n%s%s", r.code, r.out, r.err)
	}
}

// machines returns the command lines of this banger's VMMs.
func (b *banger) machines() []string {
	b.t.Helper()
	return append(b.processes("qemu"), b.processes("firecracker")...)
}

// processes returns the command lines of the processes that work on this banger's state,
// other than the test itself, and whose program's name begins with prefix.
func (b *banger) processes(prefix string) []string {
	return slices.Collect(maps.Values(b.byPID(prefix)))
}

// byPID is processes with the processes' ids.
func (b *banger) byPID(prefix string) map[int]string {
	found := map[int]string{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // it has just ended
		}
		environ, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil {
			continue
		}
		cwd, err := os.Readlink(filepath.Join(dir, "cwd"))
		if err != nil {
			continue
		}
		name := filepath.Base(string(bytes.SplitN(line, []byte{0}, 2)[0]))
		if strings.HasPrefix(name, prefix) && (strings.HasPrefix(cwd, b.state+"/") || bytes.Contains(line, []byte(b.state+"/")) || bytes.Contains(environ, []byte("BANGER_STATE_DIR="+b.state+"\x00"))) {
			found[pid] = strings.ReplaceAll(string(line), "\x00", " ")
		}
	}
	return found
}

func (b *banger) sockets() (found []string) {
	err := filepath.WalkDir(b.state, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSocket != 0 {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		b.t.Error(err)
	}
	return found
}

// result is how a command ended.
type result struct {
	out, err string
	code     int
}

// command prepares a banger command; its environment may still be changed.
func (b *banger) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	b.t.Cleanup(cancel)
	c := exec.CommandContext(ctx, filepath.Join(b.bin, "banger"), args...)
	c.Env = b.env
	if b.user != nil {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: b.user}
	}
	return c
}

// finish runs a prepared command to its end.
func (b *banger) finish(c *exec.Cmd) result {
	b.t.Helper()
	var out, errOut bytes.Buffer
	if c.Stdout == nil {
		c.Stdout = &out
	}
	c.Stderr = &errOut
	err := c.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		b.t.Fatalf("%q: %v", c.Args[1:], err)
	}
	return result{out.String(), errOut.String(), c.ProcessState.ExitCode()}
}

// run runs banger with the given standard input.
func (b *banger) run(stdin string, args ...string) result {
	b.t.Helper()
	c := b.command(args...)
	c.Stdin = strings.NewReader(stdin)
	return b.finish(c)
}

// ok runs banger and returns its output; it has to succeed.
func (b *banger) ok(args ...string) string {
	b.t.Helper()
	r := b.run("", args...)
	if r.code != 0 {
		b.t.Errorf("banger %q: exit code %d\n%s", args, r.code, r.err)
	}
	return r.out
}

// refused runs banger, which has to fail with this code and say every one of the words,
// in no more than a few lines and with nothing that steers a terminal.
func (b *banger) refused(code int, words []string, args ...string) {
	b.t.Helper()
	r := b.run("", args...)
	if r.code != code {
		b.t.Errorf("banger %q: exit code %d, want %d\n%s", args, r.code, code, r.err)
	}
	for _, w := range words {
		if !strings.Contains(r.err, w) {
			b.t.Errorf("banger %q does not say %q:\n%s", args, w, r.err)
		}
	}
	if strings.ContainsRune(r.err, 0x1b) || strings.Contains(r.err, "goroutine ") || strings.Count(r.err, "\n") > 40 {
		b.t.Errorf("banger %q says what no one should read:\n%q", args, r.err)
	}
}

// vm starts a tiny VM in the background and returns its name.
func (b *banger) vm(args ...string) string {
	b.t.Helper()
	name := strings.TrimSpace(b.ok(append([]string{"run", "-d", "--image", "tiny"}, args...)...))
	if b.t.Failed() {
		b.t.FailNow()
	}
	return name
}

// inspect returns a VM as the daemon shows it.
func (b *banger) inspect(name string) api.VM {
	b.t.Helper()
	var vms []api.VM
	if err := json.Unmarshal([]byte(b.ok("inspect", name)), &vms); err != nil || len(vms) != 1 {
		b.t.Fatalf("inspect %s: %v", name, err)
	}
	return vms[0]
}

// list returns all VMs by name, as the daemon shows them.
func (b *banger) list() map[string]api.VM {
	b.t.Helper()
	var vms []api.VM
	if err := json.Unmarshal([]byte(b.ok("ls", "--json")), &vms); err != nil {
		b.t.Fatalf("ls --json: %v", err)
	}
	byName := map[string]api.VM{}
	for _, v := range vms {
		byName[v.Name] = v
	}
	return byName
}

// client is a client of the banger's daemon, which has to run.
func (b *banger) client() *api.Client { return api.New(filepath.Join(b.state, "bangerd.sock")) }

// eventually waits until what happens elsewhere has happened, as long as a busy host without KVM may take.
func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	deadline := time.After(3 * time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !happened() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never happened: %s", what)
		}
	}
}

// daemonPID is the process id of the running daemon.
func (b *banger) daemonPID() int {
	b.t.Helper()
	d, err := b.client().Daemon(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return d.PID
}

// killDaemon ends the daemon as a crash would, and waits until it is gone.
func (b *banger) killDaemon() { b.signal(b.daemonPID(), unix.SIGKILL) }

// signal sends a process a signal that ends it, and waits until it is gone.
func (b *banger) signal(pid int, sig unix.Signal) {
	b.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		b.t.Fatal(err)
	}
	b.ends(fd)
}

// ends waits for the end of the process of a pidfd.
func (b *banger) ends(fd int) {
	b.t.Helper()
	for { // readable once the process has ended and closed its files
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(limit.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			b.t.Fatalf("a process does not end: %v", err)
		}
		return
	}
}
