package guestd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/errs"
	"banger/internal/guest/proto"
)

func (w *world) configure(t *testing.T, c proto.Configure) {
	t.Helper()
	if err := w.agent.Call(t.Context(), proto.MethodConfigure, c, nil); err != nil {
		t.Fatal(err)
	}
}

const machineID = "0123456789abcdef0123456789abcdef"

func TestConfigureWritesIdentity(t *testing.T) {
	w := newWorld(t)
	put(t, w.root+"/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 old old.example\n10.0.0.1 gw\n")
	if err := os.Symlink("/run/resolve/stub.conf", w.root+"/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	links := []proto.Link{{MAC: "52:54:00:00:00:01", Addresses: []string{"10.0.2.15/24"}}}
	c := proto.Configure{VMID: "v1", Hostname: "box", MachineID: machineID, Links: links,
		Nameservers: []string{"10.0.2.3"}, Search: []string{"vm", "example"}, Entropy: []byte("random")}
	for range 2 { // it is idempotent
		w.configure(t, c)
		wantFile(t, w.root+"/etc/hostname", "box\n")
		wantFile(t, w.root+"/etc/hosts", "127.0.0.1 localhost\n127.0.1.1\tbox\n10.0.0.1 gw\n")
		wantFile(t, w.root+"/etc/machine-id", machineID+"\n")
		wantFile(t, w.root+"/run/resolve/stub.conf", "nameserver 10.0.2.3\nsearch vm example\n")
		if w.system.hostname != "box" || len(w.system.links) != 1 || string(w.system.entropy) != "random" {
			t.Errorf("the kernel got %+v", w.system)
		}
	}
	var h proto.Health
	if err := w.agent.Call(t.Context(), proto.MethodHealth, nil, &h); err != nil || !h.Configured || h.VMID != "v1" || h.Init != "banger-guest" {
		t.Errorf("health: %+v, %v", h, err)
	}
}

// systemd-resolved owns the file that resolv.conf then is.
func TestConfigureTellsResolved(t *testing.T) {
	w := newWorld(t)
	put(t, w.root+"/run/systemd/resolve/stub-resolv.conf", "nameserver 127.0.0.53\n")
	if err := os.Symlink("../run/systemd/resolve/stub-resolv.conf", w.root+"/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	w.configure(t, proto.Configure{Nameservers: []string{"10.0.2.3", "10.0.2.4"}, Search: []string{"vm"}})
	wantFile(t, w.root+"/run/systemd/resolved.conf.d/banger.conf", "[Resolve]\nDNS=10.0.2.3 10.0.2.4\nDomains=vm\n")
	wantFile(t, w.root+"/etc/resolv.conf", "nameserver 127.0.0.53\n")
}

// What differs is written, what does not is left alone: its inode stays.
func TestConfigureTouchesOnlyWhatDiffers(t *testing.T) {
	w := newWorld(t)
	put(t, w.root+"/etc/hosts", "127.0.0.1 localhost\n127.0.1.1   box\n")
	put(t, w.root+"/etc/hostname", "box\n")
	before := stat(t, w.root+"/etc/hosts", w.root+"/etc/hostname")
	w.configure(t, proto.Configure{Hostname: "box"})
	after := stat(t, w.root+"/etc/hosts", w.root+"/etc/hostname")
	for i := range before {
		if !os.SameFile(before[i], after[i]) || !before[i].ModTime().Equal(after[i].ModTime()) {
			t.Errorf("%s was rewritten", before[i].Name())
		}
	}
}

func stat(t *testing.T, paths ...string) []os.FileInfo {
	t.Helper()
	var all []os.FileInfo
	for _, p := range paths {
		fi, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fi)
	}
	return all
}

// An image can hold anything where a file should be. The machine starts all the same, and
// nothing outside its root is written.
func TestConfigureSurvivesHostileFiles(t *testing.T) {
	w := newWorld(t)
	outside := filepath.Join(t.TempDir(), "canary")
	put(t, outside, "alive")
	for name, target := range map[string]string{
		"hostname": outside, "resolv.conf": "../../../../../../.." + outside, "machine-id": "machine-id",
	} {
		if err := os.Symlink(target, filepath.Join(w.root, "etc", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(w.root+"/etc/hosts", 0o755); err != nil {
		t.Fatal(err)
	}
	w.configure(t, proto.Configure{VMID: "v", Hostname: "box", MachineID: machineID, Nameservers: []string{"1.2.3.4"}})
	wantFile(t, outside, "alive")
	wantFile(t, w.root+outside, "nameserver 1.2.3.4\n") // two names of one file: the last one written wins
}

func TestConfigureRefusesNonsense(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]proto.Configure{
		"host name":   {Hostname: "a\nb"},
		"name server": {Nameservers: []string{"1.2.3.4\noptions evil"}},
		"machine id":  {MachineID: "short"},
		"host key":    {SSHHostKey: "no key"},
	} {
		err := w.agent.Call(t.Context(), proto.MethodConfigure, c, nil)
		if errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if entries, err := os.ReadDir(w.root + "/etc"); err != nil || len(entries) != 1 {
		t.Errorf("something was written: %v, %v", entries, err)
	}
}

// Before anything runs the clock is simply set; later it never goes back.
func TestConfigureClock(t *testing.T) {
	w := newWorld(t)
	start := w.system.Now()
	for _, step := range []struct{ host, want time.Duration }{
		{-time.Hour, -time.Hour},                        // first: back
		{-2 * time.Hour, -time.Hour},                    // later: not back
		{-time.Hour + 500*time.Millisecond, -time.Hour}, // close enough
		{time.Hour, time.Hour},                          // forward, after a pause
		{time.Hour - 500*time.Millisecond, time.Hour},   // not back by a little
	} {
		w.configure(t, proto.Configure{UnixNanos: start.Add(step.host).UnixNano()})
		if got := w.system.Now().Sub(start); got != step.want {
			t.Errorf("host at %v: guest at %v, want %v", step.host, got, step.want)
		}
	}
}

func TestShutdownRepliesFirst(t *testing.T) {
	w := newWorld(t)
	for _, reboot := range []bool{false, true} {
		if err := w.agent.Call(t.Context(), proto.MethodShutdown, proto.Shutdown{Reboot: reboot}, nil); err != nil {
			t.Fatal(err)
		}
		if got := <-w.system.shutdown; strings.HasPrefix(got, "reboot") != reboot {
			t.Errorf("got %q", got)
		}
	}
}

func TestControlMethods(t *testing.T) {
	w := newWorld(t)
	if err := w.agent.Call(t.Context(), proto.MethodFreeze, nil, nil); err != nil || !w.system.frozen {
		t.Errorf("freeze: %v", err)
	}
	if err := w.agent.Call(t.Context(), proto.MethodThaw, nil, nil); err != nil || w.system.frozen {
		t.Errorf("thaw: %v", err)
	}
	at := time.Unix(2_000_000, 5)
	if err := w.agent.Call(t.Context(), proto.MethodSetTime, proto.SetTime{UnixNanos: at.UnixNano()}, nil); err != nil || !w.system.Now().Equal(at) {
		t.Errorf("set-time: %v, %v", w.system.Now(), err)
	}
	var boot proto.Boot
	if err := w.agent.Call(t.Context(), proto.MethodWaitBoot, nil, &boot); err != nil || boot.State != "running" {
		t.Errorf("wait-boot: %+v, %v", boot, err)
	}
	var grown proto.GrowRoot
	if err := w.agent.Call(t.Context(), proto.MethodGrowRoot, nil, &grown); err != nil || grown.NewBytes != 2 {
		t.Errorf("grow-root: %+v, %v", grown, err)
	}
	var trimmed proto.Trim
	if err := w.agent.Call(t.Context(), proto.MethodTrim, nil, &trimmed); err != nil || trimmed.Bytes != 4096 {
		t.Errorf("trim: %+v, %v", trimmed, err)
	}
	var free proto.Free
	if err := w.agent.Call(t.Context(), proto.MethodFree, proto.FreeFrom{Offset: 7}, &free); err != nil || len(free.Ranges) != 1 || free.Ranges[0][0] != 7 {
		t.Errorf("free: %+v, %v", free, err)
	}
	if err := w.agent.Call(t.Context(), "no-such", nil, nil); errs.KindOf(err) != errs.Invalid {
		t.Errorf("unknown method: %v", err)
	}
}
