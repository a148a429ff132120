package guestd_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/guest/proto"
	"banger/internal/guest/session"
	"banger/internal/guest/tree"
)

func put(t *testing.T, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t *testing.T, path, data string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != data {
		t.Errorf("%s: got %q, %v; want %q", path, got, err, data)
	}
}

func TestCopyFollowsTheRulesOfCp(t *testing.T) {
	w := newWorld(t)
	local := t.TempDir()
	put(t, local+"/file", "data")
	put(t, local+"/dir/a/b", "deep")
	guestDir := w.root + "/home/in"
	if err := os.Mkdir(guestDir, 0o755); err != nil {
		t.Fatal(err)
	}
	puts := []struct{ src, dst, file, data string }{
		{"/file", guestDir, guestDir + "/file", "data"},
		{"/file", guestDir + "/other", guestDir + "/other", "data"},
		{"/file", "in/relative", guestDir + "/relative", "data"},
		{"/dir", guestDir, guestDir + "/dir/a/b", "deep"},
		{"/dir", guestDir + "/renamed", guestDir + "/renamed/a/b", "deep"},
		{"/dir/", guestDir + "/slash/", guestDir + "/slash/a/b", "deep"},
		{"/dir/.", guestDir, guestDir + "/a/b", "deep"},
	}
	for _, tt := range puts {
		if err := session.Put(t.Context(), w.open, local+tt.src, proto.Put{Path: tt.dst}, nil); err != nil {
			t.Errorf("put %s %s: %v", tt.src, tt.dst, err)
			continue
		}
		wantFile(t, tt.file, tt.data)
	}
	back := t.TempDir()
	gets := []struct{ src, dst, file, data string }{
		{guestDir + "/file", "", "/file", "data"},
		{"in/file", "/named", "/named", "data"},
		{guestDir + "/dir", "", "/dir/a/b", "deep"},
		{guestDir + "/dir/.", "", "/a/b", "deep"},
		{guestDir + "/dir", "/copy", "/copy/a/b", "deep"},
		{guestDir + "/dir/a/..", "/up", "/up/a/b", "deep"},
	}
	for _, tt := range gets {
		var last, total int64
		err := session.Get(t.Context(), w.open, tt.src, back+tt.dst, func(d, n int64) { last, total = d, n })
		if err != nil {
			t.Errorf("get %s %s: %v", tt.src, tt.dst, err)
			continue
		}
		wantFile(t, back+tt.file, tt.data)
		if last != 4 || total != 4 {
			t.Errorf("get %s: told %d of %d", tt.src, last, total)
		}
	}
}

func TestCopyErrorsSayWhichSide(t *testing.T) {
	w := newWorld(t)
	local := t.TempDir()
	put(t, local+"/file", strings.Repeat("much ", 1<<20)) // more than the windows hold
	for name, err := range map[string]error{
		"no parent":   session.Put(t.Context(), w.open, local+"/file", proto.Put{Path: w.root + "/no/where"}, nil),
		"no dir":      session.Put(t.Context(), w.open, local+"/file", proto.Put{Path: w.root + "/nodir/"}, nil),
		"no source":   session.Get(t.Context(), w.open, w.root+"/nothing", local, nil),
		"no contents": session.Get(t.Context(), w.open, w.root+"/etc/passwd/.", local, nil),
	} {
		if _, ok := errors.AsType[*proto.Error](err); !ok {
			t.Errorf("%s: got %v, want an error of the guest's", name, err)
		}
	}
	for name, err := range map[string]error{
		"no source":    session.Put(t.Context(), w.open, local+"/nothing", proto.Put{Path: "/"}, nil),
		"not contents": session.Put(t.Context(), w.open, local+"/file/.", proto.Put{Path: "/"}, nil),
		"no parent":    session.Get(t.Context(), w.open, w.root+"/etc/passwd", local+"/no/where", nil),
	} {
		if _, ok := errors.AsType[*proto.Error](err); ok || err == nil {
			t.Errorf("%s: got %v, want an error of this side's", name, err)
		}
	}
}

func TestCopyTellsWhatItSkipped(t *testing.T) {
	w := newWorld(t)
	dir := w.root + "/home/dir"
	put(t, dir+"/file", "x")
	if err := syscall.Mkfifo(dir+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	back := t.TempDir()
	err := session.Get(t.Context(), w.open, dir, back, nil)
	if skipped, ok := errors.AsType[tree.Skipped](err); !ok || len(skipped) != 1 {
		t.Errorf("get: %v", err)
	}
	wantFile(t, back+"/dir/file", "x")
	err = session.Put(t.Context(), w.open, dir, proto.Put{Path: w.root + "/home/again"}, nil)
	if skipped, ok := errors.AsType[tree.Skipped](err); !ok || len(skipped) != 1 {
		t.Errorf("put: %v", err)
	}
	wantFile(t, w.root+"/home/again/file", "x")
}

func TestCopyCancelled(t *testing.T) {
	w := newWorld(t)
	local := t.TempDir()
	put(t, local+"/file", strings.Repeat("x", 8<<20))
	ctx, cancel := context.WithCancel(t.Context())
	err := session.Put(ctx, w.open, local+"/file", proto.Put{Path: w.root + "/home"}, func(int64, int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(w.root + "/home/file"); err == nil {
		t.Error("a cut file has its final name")
	}
}

func TestDialKeepsDirectionsApart(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		question, _ := io.ReadAll(c)
		io.WriteString(c, "you said "+string(question))
		c.Close()
	}()
	s, err := w.open(t.Context(), proto.Header{Service: proto.ServiceDial, Dial: &proto.Dial{Network: "unix", Address: path}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var r proto.Reply
	if err := proto.ReadFrame(s, &r); err != nil || r.Error != nil {
		t.Fatal(err, r.Error)
	}
	io.WriteString(s, "hello")
	s.CloseWrite()
	if got, err := io.ReadAll(s); err != nil || string(got) != "you said hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestDialRefused(t *testing.T) {
	w := newWorld(t)
	for _, d := range []proto.Dial{{Network: "unix", Address: w.root + "/nobody"}, {Network: "ip", Address: "x"}} {
		s, err := w.open(t.Context(), proto.Header{Service: proto.ServiceDial, Dial: &d})
		if err != nil {
			t.Fatal(err)
		}
		var r proto.Reply
		if err := proto.ReadFrame(s, &r); err != nil || r.Error == nil {
			t.Errorf("%v: got %v, %v", d, r, err)
		}
		s.Close()
	}
}
