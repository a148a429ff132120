package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBadRequests(t *testing.T) {
	b := newBanger(t)
	b.ok("create", "--image", "tiny", "--name", "taken")
	for _, tc := range []struct {
		code  int
		words []string
		args  []string
	}{
		{125, []string{"no image", "nonesuch"}, []string{"run", "--image", "nonesuch"}},
		{125, []string{"image", "../images/tiny"}, []string{"run", "--image", "../images/tiny"}},
		{125, []string{"no kernel", "nonesuch"}, []string{"run", "--image", "tiny", "--kernel", "nonesuch"}},
		{125, []string{"taken already"}, []string{"run", "--image", "tiny", "--name", "taken"}},
		{125, []string{"63"}, []string{"run", "--image", "tiny", "--name", strings.Repeat("a", 64)}},
		{125, []string{"can't be a name"}, []string{"run", "--image", "tiny", "--name", "a/b"}},
		{125, []string{"can't be a name"}, []string{"run", "--image", "tiny", "--name", ".."}},
		{125, []string{"can't be a name"}, []string{"run", "--image", "tiny", "--name", "a\nb"}},
		{125, []string{"can't be a name"}, []string{"run", "--image", "tiny", "--name", "\x1b[31mred"}},
		{125, []string{"at least 64 MiB"}, []string{"run", "--image", "tiny", "--memory", "1"}},
		{125, []string{"this host has"}, []string{"run", "--image", "tiny", "--memory", "900T"}},
		{125, []string{"CPUs"}, []string{"run", "--image", "tiny", "--cpus", "0"}},
		{125, []string{"CPUs"}, []string{"run", "--image", "tiny", "--cpus", "10000"}},
		{125, []string{"smaller than the image"}, []string{"run", "--image", "tiny", "--disk", "1M"}},
		{125, []string{"no network mode", "token-ring"}, []string{"run", "--image", "tiny", "--net", "token-ring"}},
		{1, []string{"no VM"}, []string{"stop", "nonesuch"}},
		{1, []string{"no VM"}, []string{"rm", "../x"}},
		{1, []string{"no VM"}, []string{"inspect", strings.Repeat("x", 10000)}},
		{1, []string{"no VM"}, []string{"rm", "."}},
		{1, []string{"no VM"}, []string{"rm", ".."}},
		{2, []string{"--frobnicate"}, []string{"ls", "--frobnicate"}},
		{2, []string{"frobnicate"}, []string{"frobnicate"}},
		{1, []string{"no image"}, []string{"image", "rm", "nonesuch"}},
		{1, []string{"only read"}, []string{"image", "rm", "tiny"}},
		{1, []string{"in use by taken"}, []string{"kernel", "rm", "debian"}},
	} {
		b.refused(tc.code, tc.words, tc.args...)
	}
	if left := b.ok("ls", "-aq"); left != "taken\n" {
		t.Errorf("there are VMs %q", left)
	}
}

func TestNoRuntimeBundle(t *testing.T) {
	b := newBanger(t)
	nowhere := filepath.Join(t.TempDir(), "nowhere")
	b.env = append(b.env, "BANGER_RUNTIME_DIR="+nowhere)
	b.refused(125, []string{"no runtime bundle", nowhere, "banger runtime build"}, "run", "--rm", "--", "true")
	b.refused(1, []string{"no runtime bundle", nowhere}, "runtime", "path")
}

func TestQEMUIsMissingOrBroken(t *testing.T) {
	b := newBanger(t)
	path := t.TempDir()
	b.env = append(b.env, "PATH="+path)
	b.refused(125, []string{"qemu-system-x86_64", "qemu-system-x86"}, "run", "--image", "tiny", "--", "true")
	b.ok("daemon", "stop")
	broken := "#!/bin/sh\necho 'qemu-system-x86_64: the last words of QEMU' >&2\nexit 1\n"
	if err := os.WriteFile(filepath.Join(path, "qemu-system-x86_64"), []byte(broken), 0o755); err != nil {
		t.Fatal(err)
	}
	b.refused(125, []string{"the last words of QEMU"}, "run", "--image", "tiny", "--", "true")
	if left := b.ok("ls", "-aq"); left != "" {
		t.Errorf("left behind: %q", left)
	}
}

func TestUnknownConfigKey(t *testing.T) {
	b := newBanger(t)
	dir := filepath.Join(t.TempDir(), "banger")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte("imaeg = \"tiny\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.env = append(b.env, "XDG_CONFIG_HOME="+filepath.Dir(dir))
	b.refused(1, []string{"config.toml", `unknown key "imaeg"`}, "ls")
	b.env = b.env[:len(b.env)-1] // for the clean-up
}

// A guest that can't boot: its root disk holds no filesystem.
func TestGuestThatNeverBecomesReady(t *testing.T) {
	b := newBanger(t)
	image := filepath.Join(b.state, "images", "broken")
	from := filepath.Join(os.Getenv("BANGER_RUNTIME_DIR"), "images", "tiny")
	if err := os.MkdirAll(image, 0o755); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(image, e.Name())
		if e.Name() != "manifest.json" { // the filesystem: nothing, of the same size
			info, err := e.Info()
			if err == nil {
				err = errors.Join(os.WriteFile(path, nil, 0o644), os.Truncate(path, info.Size()))
			}
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		raw, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err == nil {
			err = os.WriteFile(path, []byte(strings.Replace(string(raw), `"tiny"`, `"broken"`, 1)), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b.refused(125, []string{"before its guest answered", "console said last", "banger-guest:", "banger logs stuck"},
		"run", "--image", "broken", "--name", "stuck", "--", "true")
	if v := b.inspect("stuck"); v.State != "failed" || !strings.Contains(v.Error, "banger-guest:") || v.PID != 0 {
		t.Errorf("inspect: %+v", v)
	}
	if log := b.ok("logs", "stuck"); !strings.Contains(log, "banger-guest:") {
		t.Errorf("its log: %q", log)
	}
	b.ok("rm", "stuck")
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: mounting a small filesystem needs root")
	}
	newBanger(t) // only to skip where there is no bundle
	for _, size := range []string{"256k", "1m", "4m"} {
		t.Run(size, func(t *testing.T) {
			state := t.TempDir()
			if err := unix.Mount("banger-test", state, "tmpfs", 0, "size="+size); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(state, 0); err != nil {
					t.Error(err)
				}
			})
			b := bangerIn(t, state)
			r := b.run("", "run", "--rm", "--image", "tiny", "--", "true")
			if r.code != 125 || !strings.Contains(r.err, "no space") {
				t.Errorf("got %+v", r)
			}
			if left, err := filepath.Glob(filepath.Join(state, "vms", "*")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestSockets(t *testing.T) {
	b := newBanger(t)
	socket := filepath.Join(b.state, "bangerd.sock")
	stale, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	b.ok("ls") // in place of one that a crash left
	b.ok("daemon", "stop")

	if err := os.WriteFile(socket, []byte("a user's file"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.refused(1, []string{"not a socket", "BANGER_SOCKET"}, "ls")
	if text, err := os.ReadFile(socket); err != nil || string(text) != "a user's file" {
		t.Errorf("the file that was in the way has %q, %v", text, err)
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}

	if os.Geteuid() == 0 {
		foreign, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		// Where only root could have put it, it would be that of root's daemon for its owner.
		dir := filepath.Dir(socket)
		if err := errors.Join(os.Chown(socket, 12345, 12345), os.Chmod(dir, 0o777)); err != nil {
			t.Fatal(err)
		}
		b.refused(1, []string{"belongs to user 12345"}, "ls")
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		foreign.Close()
	}
}

func TestLongPaths(t *testing.T) {
	newBanger(t)
	state := t.TempDir()
	for len(state) < 150 {
		state = filepath.Join(state, "a-rather-long-directory-name")
	}
	b := bangerIn(t, state)
	r := b.run("", "run", "--rm", "--image", "tiny", "--", "echo", "reached")
	if r.code != 0 || r.out != "reached\n" {
		t.Errorf("in a state directory of %d bytes: %+v", len(state), r)
	}
	info, err := os.Stat(filepath.Join(state, "bangerd.sock"))
	if err != nil || info.Mode().Perm() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		t.Errorf("its socket: %v, %v", info, err)
	}
}

func TestRacingStarts(t *testing.T) {
	b := newBanger(t)
	done := make(chan result)
	const clients = 8
	for range clients {
		go func() { done <- b.run("", "ls", "-q") }()
	}
	for range clients {
		if r := <-done; r.code != 0 {
			t.Errorf("%+v", r)
		}
	}
	if n := len(b.processes("bangerd")); n != 1 {
		t.Errorf("%d daemons run: %s", n, fmt.Sprint(b.processes("bangerd")))
	}
}
