package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/config"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/jail"
	"banger/internal/op"
)

// The doctor confines a program, by way of this one.
func TestMain(m *testing.M) {
	jail.Main()
	os.Exit(m.Run())
}

func options(t *testing.T) Options {
	state := t.TempDir()
	return Options{
		Config: config.Config{StateDir: state, Socket: filepath.Join(state, "bangerd.sock"), Image: "tiny", Kernel: "debian",
			DNS: config.DNS{Publish: "hosts", HostsFile: filepath.Join(state, "hosts")}},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func open(t *testing.T, o Options) *Daemon {
	t.Helper()
	d, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOneDaemonAStateDirectory(t *testing.T) {
	o := options(t)
	first := open(t, o)
	if _, err := Open(t.Context(), o); errs.KindOf(err) != errs.Busy || !strings.Contains(err.Error(), o.Config.StateDir) {
		t.Errorf("a second daemon: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, o).Close(); err != nil {
		t.Error(err)
	}
}

func TestWhatAKilledDaemonWasMakingIsRemoved(t *testing.T) {
	o := options(t)
	var drafts []string
	for _, in := range []string{"images", "images/.generations", "kernels"} {
		draft := filepath.Join(o.Config.StateDir, in, ".staging-1")
		if err := os.MkdirAll(filepath.Join(draft, "some"), 0o700); err != nil {
			t.Fatal(err)
		}
		drafts = append(drafts, draft)
	}
	jailed := filepath.Join(o.Config.StateDir, "cache/jail")
	drafts = append(drafts, jailed)
	if err := os.MkdirAll(jailed, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := os.Stat("/run/systemd/system") // it would be systemd's to make
	if lacking, _ := jail.Lacking(); lacking == "" && err != nil {
		drafts = append(drafts, jail.Group(jailed))
		if err := os.MkdirAll(jail.Group(jailed), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := open(t, o)
	d.swept()
	for _, draft := range drafts {
		if _, err := os.Stat(draft); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", draft, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// openBeside opens and closes one more daemon, and tells in the channel how that went.
func openBeside(t *testing.T, o Options) <-chan error {
	done := make(chan error, 1)
	go func() {
		d, err := Open(t.Context(), o)
		if err == nil {
			err = d.Close()
		}
		done <- err
	}()
	return done
}

// A daemon that was killed may hold its lock a moment longer than its socket.
func TestADyingDaemonIsWaitedFor(t *testing.T) {
	o := options(t)
	first := open(t, o)
	second := openBeside(t, o)
	select {
	case err := <-second:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(5 * lockInterval):
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Error(err)
	}
}

// A daemon that is ending takes no more clients, and the next one waits until its operations have
// undone what they did.
func TestAnEndingDaemonIsWaitedFor(t *testing.T) {
	o := options(t)
	first := open(t, o)
	client := api.New(o.Config.Socket)
	undone, ended := make(chan struct{}), make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		err := first.Serve(t.Context(), func() { close(ready) })
		ended <- errors.Join(err, first.Close())
	}()
	<-ready
	cancelled := make(chan struct{})
	first.ops.Start("slow", func(ctx context.Context, _ *op.Operation) error {
		<-ctx.Done()
		close(cancelled)
		<-undone
		return ctx.Err()
	})
	if err := client.StopDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-cancelled
	if err := api.New(o.Config.Socket).Ping(t.Context()); !errors.Is(err, api.ErrNoDaemon) {
		t.Errorf("one more client: %v", err)
	}
	if _, err := client.VMs(t.Context()); err != nil {
		t.Errorf("a client that was there: %v", err)
	}
	second := openBeside(t, o)
	select {
	case err := <-second:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(2 * dyingLimit):
	}
	close(undone)
	if err := errors.Join(<-ended, <-second); err != nil {
		t.Error(err)
	}
}

func TestTheKeyStaysTheSame(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ssh")
	one, err := loadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	two, err := loadIdentity(dir)
	if err != nil || one != two || !strings.HasPrefix(one.public, "ssh-ed25519 ") {
		t.Errorf("got %+v and then %+v, %v", one, two, err)
	}
	if info, err := os.Stat(one.file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its file: %v, %v", info, err)
	}
	if err := os.WriteFile(one.file, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadIdentity(dir); errs.HintOf(err) == "" {
		t.Errorf("a damaged key: %v", err)
	}
}

func TestSocketsInTheWay(t *testing.T) {
	o := options(t)
	live, err := net.Listen("unix", o.Config.Socket)
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, o)
	defer d.Close()
	if err := d.Serve(t.Context(), func() { t.Error("ready on another's socket") }); errs.KindOf(err) != errs.Busy {
		t.Errorf("a socket that is served: %v", err)
	}
	// What is left of one that was killed takes connections, perhaps, and hangs up on them.
	live.(*net.UnixListener).SetUnlinkOnClose(false)
	defer live.Close()
	go func() {
		for {
			conn, err := live.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	err = d.Serve(t.Context(), func() {
		info, err := os.Stat(o.Config.Socket)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("its socket: %v, %v", info, err)
		}
		d.stop()
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(o.Config.Socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestDoctorWithoutABundle(t *testing.T) {
	d := open(t, options(t))
	defer d.Close()
	found := map[string]string{}
	for _, c := range d.doctor(t.Context()) {
		found[c.Name] = c.Status + " " + c.Hint
	}
	if len(found) < 7 || found["disks"] == "" || found["bridge network"] == "" || !strings.HasPrefix(found["runtime bundle"], "failed fetch one: banger runtime fetch") {
		t.Errorf("found %q", found)
	}
}

func TestCheckNesting(t *testing.T) {
	for _, kvm := range []host.KVM{{Reason: "no svm"}, {Usable: true, Module: "kvm_amd", Nested: true}} {
		if err := checkNesting(kvm); err != nil {
			t.Errorf("%+v: %v", kvm, err)
		}
	}
	err := checkNesting(host.KVM{Usable: true, Module: "kvm_intel"})
	if errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "kvm_intel") || !strings.Contains(errs.HintOf(err), "modprobe kvm_intel nested=1") {
		t.Errorf("nested is off: %v; %s", err, errs.HintOf(err))
	}
}
