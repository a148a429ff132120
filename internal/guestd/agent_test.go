package guestd_test

import (
	"context"
	"log"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"banger/internal/guest"
	"banger/internal/guest/proto"
	"banger/internal/guest/session"
	"banger/internal/guestd"
)

// fakeSystem keeps a record of what would have been done to the kernel.
type fakeSystem struct {
	mu       sync.Mutex
	hostname string
	now      time.Time
	set      int // times the clock was set
	entropy  []byte
	links    []proto.Link
	linked   int // times they were set
	frozen   bool
	shutdown chan string
	reloaded chan bool // whether with the resolver
	journal  chan string
	bootID   string
	synced   int
	shed     int
}

func newFakeSystem() *fakeSystem {
	return &fakeSystem{now: time.Unix(1_000_000, 0), shutdown: make(chan string, 1), reloaded: make(chan bool, 1), journal: make(chan string, 1)}
}

func (f *fakeSystem) lock() func() { f.mu.Lock(); return f.mu.Unlock }

func (f *fakeSystem) SetHostname(name string) error              { defer f.lock()(); f.hostname = name; return nil }
func (f *fakeSystem) SetTime(t time.Time) error                  { defer f.lock()(); f.now = t; f.set++; return nil }
func (f *fakeSystem) Now() time.Time                             { defer f.lock()(); return f.now }
func (f *fakeSystem) AddEntropy(b []byte) error                  { defer f.lock()(); f.entropy = b; return nil }
func (f *fakeSystem) Freeze(string) error                        { defer f.lock()(); f.frozen = true; return nil }
func (f *fakeSystem) Thaw(string) error                          { defer f.lock()(); f.frozen = false; return nil }
func (f *fakeSystem) ReloadNetwork(_ string, resolver bool) bool { f.reloaded <- resolver; return true }
func (f *fakeSystem) ReloadJournal(init string)                  { f.journal <- init }
func (f *fakeSystem) SetBootID(id string) error                  { defer f.lock()(); f.bootID = id; return nil }
func (f *fakeSystem) Shed(string) error                          { defer f.lock()(); f.shed++; return nil }
func (f *fakeSystem) Sync()                                      { defer f.lock()(); f.synced++ }
func (f *fakeSystem) Exposed(start func() error) error {
	return start()
}

func (f *fakeSystem) SetLinks(_ context.Context, l []proto.Link) error {
	defer f.lock()()
	f.links = l
	f.linked++
	return nil
}

func (f *fakeSystem) GrowRoot(string) (proto.GrowRoot, error) {
	return proto.GrowRoot{OldBytes: 1, NewBytes: 2}, nil
}

func (f *fakeSystem) Trim(string) (proto.Trim, error) { return proto.Trim{Bytes: 4096}, nil }

func (f *fakeSystem) Free(_ string, offset int64) (proto.Free, error) {
	return proto.Free{Ranges: [][2]int64{{offset, 512}}}, nil
}

func (f *fakeSystem) WaitBoot(_ context.Context, init string) (string, error) {
	return "running", nil
}

func (f *fakeSystem) Shutdown(init string, reboot bool) error {
	what := "poweroff"
	if reboot {
		what = "reboot"
	}
	f.shutdown <- what + " " + init
	return nil
}

// world is an agent and a host connected to it.
type world struct {
	root   string
	system *fakeSystem
	agent  *guest.Agent
}

// socketpair returns two connected Unix sockets, as QEMU's and the daemon's are.
func socketpair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func newWorld(t testing.TB) *world {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"etc", "home"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	passwd := "root:x:0:0:root:" + root + "/home:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/sh\n"
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte(passwd), 0o644); err != nil {
		t.Fatal(err)
	}
	w := &world{root: root, system: newFakeSystem()}
	hostEnd, guestEnd := socketpair(t)
	served := make(chan struct{})
	a := guestd.New(guestd.Config{Root: root, System: w.system, Log: log.New(t.Output(), "", 0)})
	go func() {
		defer close(served)
		a.ServeConn(guestEnd)
	}()
	var err error
	if w.agent, err = guest.Connect(t.Context(), hostEnd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.agent.Close()
		<-served
	})
	return w
}

// open is what the API client's opener does, without a daemon between.
func (w *world) open(ctx context.Context, h proto.Header) (session.Stream, error) {
	return w.agent.Open(ctx, h)
}
