package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/jail"
)

func TestMain(m *testing.M) {
	jail.Main()
	os.Exit(m.Run())
}

// script makes a program that stands in for QEMU.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func wantNoSockets(t *testing.T, dir string) {
	t.Helper()
	for _, name := range socketNames() {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
}

func TestLaunchTellsQEMUsLastWords(t *testing.T) {
	for name, c := range map[string]struct{ program, want string }{
		"with words":  {"echo 'qemu-system-x86_64: -m 5T: cannot set up guest memory' >&2; exit 1", "-m 5T: cannot set up guest memory"},
		"warned":      {"echo 'qemu-system-x86_64: warning: no sha-ni' >&2; echo 'qemu-system-x86_64: no KVM' >&2; exit 1", "no KVM"},
		"speechless":  {"exit 3", "exit status 3"},
		"by a signal": {"kill -KILL $$", "signal: killed"},
	} {
		spec := goodSpec(t)
		_, err := New(script(t, c.program)).Launch(t.Context(), spec)
		if errs.KindOf(err) != errs.Unavailable || !strings.HasSuffix(err.Error(), ": "+c.want) {
			t.Errorf("%s: %v", name, err)
		}
		wantNoSockets(t, spec.Dir)
	}
	spec := goodSpec(t)
	_, err := New("/nonexistent/qemu").Launch(t.Context(), spec)
	if errs.KindOf(err) != errs.Unavailable {
		t.Errorf("no QEMU: %v", err)
	}
	wantNoSockets(t, spec.Dir)
}

// A program that can use one CPU only says so.
func TestNestedTCGStaysOnOneCPU(t *testing.T) {
	spec := goodSpec(t)
	spec.Nested = true
	_, err := New(script(t, "nproc; exit 1")).Launch(t.Context(), spec)
	if err == nil || !strings.HasSuffix(err.Error(), ": 1") {
		t.Errorf("number of CPUs: %v", err)
	}
}

// TestALaunchThatHangsIsEnded has a QEMU that starts and never says a word.
func TestALaunchThatHangsIsEnded(t *testing.T) {
	spec := goodSpec(t)
	started := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(started, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	program := script(t, "echo $$ > "+started+"; exec sleep 1000")
	failed := make(chan error, 1)
	go func() { _, err := New(program).Launch(ctx, spec); failed <- err }()
	text, err := os.ReadFile(started)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) || errs.KindOf(err) != errs.Unavailable {
		t.Errorf("got %v", err)
	}
	if _, err := host.Identify(pid); errs.KindOf(err) != errs.NotFound {
		t.Errorf("process %d is left: %v", pid, err)
	}
	wantNoSockets(t, spec.Dir)
}

func TestStaleSocketsAreReplaced(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		made, err := listenAll(dir)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := dial(t.Context(), dir, channelSocket)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		info, err := os.Stat(filepath.Join(dir, channelSocket))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		made.close()
		if c, err := dial(t.Context(), dir, channelSocket); err == nil {
			t.Errorf("a socket that nobody holds was connected: %v", c)
		}
	}
	for range 2 {
		if err := removeSockets(dir); err != nil {
			t.Error(err)
		}
	}
	wantNoSockets(t, dir)
}
