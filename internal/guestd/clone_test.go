package guestd_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/guest/proto"
)

// A clone drops what it shares with the machine that it goes on from, and has its image's own
// programs run before anybody is told that it is ready.
func TestACloneShedsItsOrigin(t *testing.T) {
	w := newWorld(t)
	shared := []string{"var/lib/systemd/random-seed", "var/lib/dhcp/dhclient.eth0.leases", "run/systemd/netif/leases/2"}
	for _, name := range append(shared, "var/lib/dhcp/kept.conf") {
		put(t, filepath.Join(w.root, name), "shared")
	}
	hooks := filepath.Join(w.root, "etc/banger/on-clone.d")
	put(t, filepath.Join(hooks, "20-second"), "#!/bin/sh\necho second $BANGER_VM >>"+w.root+"/ran\n")
	put(t, filepath.Join(hooks, "10-first"), "#!/bin/sh\necho first $BANGER_MACHINE_ID >>"+w.root+"/ran\nexit 1\n")
	put(t, filepath.Join(hooks, "30-not-executable"), "#!/bin/sh\necho third >>"+w.root+"/ran\n")
	for _, name := range []string{"20-second", "10-first"} {
		if err := os.Chmod(filepath.Join(hooks, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := proto.Configure{VMID: "v1", Hostname: "origin", MachineID: machineID, UnixNanos: w.system.Now().UnixNano()}
	w.configure(t, c)
	if _, err := os.Stat(w.root + "/ran"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("programs for clones were run in a machine that is none: %v", err)
	}

	later := w.system.Now().Add(300 * time.Millisecond) // less than a running clock is corrected for
	c.VMID, c.Hostname, c.UnixNanos, c.Entropy = "v2", "clone", later.UnixNano(), []byte("fresh")
	c.Clone = &proto.Clone{BootID: "5f0c7a86-33ad-4c1c-9d4b-1d0f8e6f3a11"}
	w.configure(t, c)
	wantFile(t, w.root+"/ran", "first "+machineID+"\nsecond clone\n")
	for _, name := range shared {
		if _, err := os.Stat(filepath.Join(w.root, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	wantFile(t, w.root+"/var/lib/dhcp/kept.conf", "shared")
	if w.system.hostname != "clone" || string(w.system.entropy) != "fresh" || w.system.bootID != c.Clone.BootID || !w.system.now.Equal(later) {
		t.Errorf("the kernel got %+v", w.system)
	}
	<-w.system.journal
}

// What a machine has given up before it was saved, its clones need not.
func TestAMachineShedsBeforeItIsSaved(t *testing.T) {
	w := newWorld(t)
	seed := filepath.Join(w.root, "var/lib/systemd/random-seed")
	put(t, seed, "shared")
	w.configure(t, proto.Configure{VMID: "v1", Hostname: "origin", MachineID: machineID})
	if err := w.agent.Call(t.Context(), proto.MethodShed, nil, nil); err != nil || w.system.shed != 1 || w.system.synced != 1 {
		t.Errorf("shed %d times, synced %d, %v", w.system.shed, w.system.synced, err)
	}
	if _, err := os.Stat(seed); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it would be saved with its seed: %v", err)
	}
	wantFile(t, w.root+"/etc/hostname", "x\n") // over which any name can be written without the file becoming shorter
	// Its keys are read when somebody wants to come in by SSH.
	w.configure(t, proto.Configure{VMID: "v2", Hostname: "clone", MachineID: machineID, SSHHostKey: "no key",
		Clone: &proto.Clone{BootID: "5f0c7a86-33ad-4c1c-9d4b-1d0f8e6f3a11", Shed: true}})
	wantFile(t, w.root+"/etc/hostname", "clone\n")
	wantFile(t, w.root+"/etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\tclone\n")
	select {
	case <-w.system.journal:
		t.Error("the journal of a clone was ended again")
	default:
	}
}

// The host is told by how much a clock may be off that a configure has set.
func TestConfigureTellsTheClock(t *testing.T) {
	w := newWorld(t)
	want := w.system.Now().Add(time.Hour)
	var got proto.Configured
	c := proto.Configure{VMID: "v1", Hostname: "origin", MachineID: machineID, UnixNanos: want.UnixNano()}
	begin := time.Now()
	if err := w.agent.Call(t.Context(), proto.MethodConfigure, c, &got); err != nil {
		t.Fatal(err)
	}
	if took := time.Duration(got.TookNanos); got.UnixNanos != want.UnixNano() || took <= 0 || took > time.Since(begin) {
		t.Errorf("it shows %v after %v, want %v", time.Unix(0, got.UnixNanos), took, want)
	}
}

func TestTheClockIsMovedAndRead(t *testing.T) {
	w := newWorld(t)
	was := w.system.Now()
	for _, adjust := range []time.Duration{0, -300 * time.Millisecond, time.Hour} {
		var c proto.Clock
		if err := w.agent.Call(t.Context(), proto.MethodClock, proto.Clock{AdjustNanos: int64(adjust)}, &c); err != nil {
			t.Fatal(err)
		}
		if was = was.Add(adjust); c.UnixNanos != was.UnixNano() || !w.system.now.Equal(was) {
			t.Errorf("moved by %v the clock shows %v and tells %v, want %v", adjust, w.system.now, time.Unix(0, c.UnixNanos), was)
		}
	}
}
