package e2e

import (
	"context"
	"crypto/rand"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // to do to the database what a bug would

	"banger/api"
)

// tmpfs returns a state directory that is a filesystem of its own.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: mounting a filesystem needs root")
	}
	newBanger(t) // only to skip where there is no bundle
	state := t.TempDir()
	if err := unix.Mount("banger-test", state, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(state, 0); err != nil {
			t.Error(err)
		}
	})
	return state
}

// sql changes the database behind the back of a daemon that does not run.
func (b *banger) sql(statement string, args ...any) {
	b.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(b.state, "banger.db"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement, args...); err != nil {
		b.t.Fatal(err)
	}
}

// A machine that ends from outside is noticed at once.
func TestAMachineKilledFromOutsideIsNoticedInASecond(t *testing.T) {
	b := newBanger(t)
	name := b.vm("--wait", "agent")
	pid := b.inspect(name).PID
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	last := int64(0)
	if err := b.client().Events(ctx, 0, false, func(e api.Transition) bool { last = e.Seq; return true }); err != nil {
		t.Fatal(err)
	}
	b.signal(pid, unix.SIGKILL)
	ended := time.Now()
	var news api.Transition
	if err := b.client().Events(ctx, last, true, func(e api.Transition) bool { news = e; return false }); err != nil {
		t.Fatal(err)
	}
	if took := news.At.Sub(ended); news.To != api.StateFailed || took > time.Second || !strings.Contains(news.Reason, "signal 9") {
		t.Errorf("%v after its end: %+v", took, news)
	}
	if v := b.consistent()[name]; v.State != api.StateFailed || v.Error != news.Reason {
		t.Errorf("ls: %+v", v)
	}
	b.ok("start", name)
}

func TestDirectoriesRemovedByHand(t *testing.T) {
	b := newBanger(t)
	b.ok("create", "--image", "tiny", "--name", "rests")
	b.vm("--name", "runs", "--wait", "agent")
	b.vm("--name", "ends", "--wait", "agent")
	for _, v := range b.list() {
		if err := os.RemoveAll(v.Directory); err != nil {
			t.Fatal(err)
		}
	}
	b.ok("exec", "runs", "--", "true") // it has what it needs in its hands
	r := b.run("", "system", "census")
	if r.code != 1 || strings.Count(r.out, "it should be there and is not") != 6 {
		t.Errorf("the census of three VMs without directories and disks: %+v", r)
	}
	b.signal(b.inspect("ends").PID, unix.SIGKILL)
	eventually(t, "the news of its end", func() bool { return b.inspect("ends").State == "failed" })
	b.refused(1, []string{"no such file"}, "start", "rests")
	b.killDaemon() // the next one has no way to the machine: its sockets are gone
	if v := b.list(); len(v) != 3 || v["runs"].State != "failed" || !strings.Contains(v["runs"].Error, "no such file") {
		t.Errorf("after the daemon's death: %+v", v)
	}
	b.ok("rm", "-f", "rests", "runs", "ends")
}

// damage replaces the database of a stopped daemon by random bytes.
func (b *banger) damage() {
	b.t.Helper()
	b.ok("daemon", "stop")
	noise := make([]byte, 64<<10)
	rand.Read(noise)
	if err := os.WriteFile(filepath.Join(b.state, "banger.db"), noise, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// A lost database is made again from what the VMs' directories tell.
func TestADatabaseOfRandomBytes(t *testing.T) {
	b := newBanger(t)
	b.vm("--name", "runs")
	b.ok("create", "--image", "tiny", "--name", "rests")
	b.ok("create", "--image", "tiny", "--name", "garbled")
	before := b.list()
	if err := os.WriteFile(filepath.Join(before["garbled"].Directory, "vm.json"), []byte("{ garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v := b.inspect("garbled"); v.State != "stopped" { // while there is a database the copy is not read
		t.Errorf("inspect: %+v", v)
	}
	b.damage()
	r := b.run("", "ls", "-a")
	aside, err := filepath.Glob(filepath.Join(b.state, "banger.db.damaged-*"))
	if err != nil || len(aside) != 1 {
		t.Fatalf("set aside: %v, %v", aside, err)
	}
	for _, said := range []string{r.err, b.ok("daemon", "status")} {
		for _, word := range []string{"damaged", aside[0], "rests", "runs", before["garbled"].ID} {
			if !strings.Contains(said, word) {
				t.Errorf("it does not say %q: %s", word, said)
			}
		}
	}
	after := b.list()
	if len(after) != 2 || after["runs"].State != "running" || after["runs"].PID != before["runs"].PID || after["rests"].State != "stopped" {
		t.Errorf("known again: %+v", after)
	}
	b.ok("exec", "runs", "--", "true")
	if r := b.run("", "system", "census"); r.code != 1 || !strings.Contains(r.out, before["garbled"].ID) || strings.Contains(r.out, after["runs"].ID) {
		t.Errorf("the census: %+v", r)
	}
	b.ok("system", "prune", "-y")
	b.census()
	if err := os.Remove(aside[0]); err != nil {
		t.Error(err)
	}
	b.ok("start", "rests")
	b.ok("exec", "rests", "--", "true")
}

func TestADatabaseOfANewerBanger(t *testing.T) {
	b := newBanger(t)
	b.ok("create", "--image", "tiny", "--name", "kept")
	b.ok("daemon", "stop")
	path := filepath.Join(b.state, "banger.db")
	kept, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b.sql("PRAGMA user_version = 99")
	b.refused(1, []string{"version 99", "newer banger"}, "ls")
	if err := os.WriteFile(path, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	if b.list()["kept"].State != "stopped" {
		t.Error("its VM is lost")
	}
}

// A machine whose row is lost is a stray: the census tells, and system prune ends it.
func TestStraysAreSweptAway(t *testing.T) {
	b := newBanger(t)
	stays := b.vm("--name", "stays", "--wait", "agent")
	v := b.inspect(b.vm("--name", "stray", "--wait", "agent"))
	b.ok("daemon", "stop")
	b.sql("PRAGMA foreign_keys = OFF; DELETE FROM resources WHERE vm_id = '" + v.ID + "'; DELETE FROM vms WHERE id = '" + v.ID + "'")
	r := b.run("", "system", "census")
	for _, word := range []string{"directory", "process", "socket", v.ID, "no row explains it"} {
		if r.code != 1 || !strings.Contains(r.out, word) {
			t.Errorf("the census does not tell of the %s: %+v", word, r)
		}
	}
	b.refused(2, []string{"-y"}, "system", "prune")
	b.refused(1, nil, "system", "verify")
	if len(b.processes("qemu")) != 2 {
		t.Error("telling of a stray has ended it")
	}
	if out := b.ok("system", "prune", "-y"); !strings.Contains(out, "removed process") || !strings.Contains(out, "removed directory") {
		t.Errorf("prune: %s", out)
	}
	b.census()
	if left := b.processes("qemu"); len(left) != 1 || !strings.Contains(left[0], "banger-"+b.inspect(stays).ID) {
		t.Errorf("left: %q", left)
	}
	b.ok("exec", stays, "--", "true")
	if out := b.ok("system", "verify"); !strings.Contains(out, "ok       image tiny") || strings.Contains(out, "damaged") {
		t.Errorf("verify: %s", out)
	}
}

func TestAReadOnlyStateDirectory(t *testing.T) {
	b := bangerIn(t, tmpfs(t, "64m"))
	b.ok("create", "--image", "tiny", "--name", "rests")
	b.ok("daemon", "stop")
	b.remount(unix.MS_RDONLY)
	b.refused(1, []string{"read-only"}, "ls")
	b.refused(125, []string{"read-only"}, "run", "--image", "tiny")
	b.remount(0)
	if got := b.consistent(); len(got) != 1 || got["rests"].State != api.StateStopped {
		t.Errorf("ls: %+v", got)
	}
}

// remount changes the state directory's filesystem; 0 makes it writable.
func (b *banger) remount(flags uintptr) {
	b.t.Helper()
	if err := unix.Mount("", b.state, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
		b.t.Fatal(err)
	}
}

// A daemon whose state directory vanishes ends, and its VMs run on until it is back.
func TestAStateDirectoryThatVanishes(t *testing.T) {
	b := newBanger(t)
	b.vm("--name", "runs", "--wait", "agent")
	pid, daemon := b.inspect("runs").PID, b.daemonPID()
	fd, err := unix.PidfdOpen(daemon, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := os.Rename(b.state, b.state+".gone"); err != nil {
		t.Fatal(err)
	}
	b.ends(fd)
	if err := os.Rename(b.state+".gone", b.state); err != nil {
		t.Fatal(err)
	}
	if v := b.consistent()["runs"]; v.State != api.StateRunning || v.PID != pid {
		t.Errorf("%+v was process %d", v, pid)
	}
}
