package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/disk/disktest"
)

// bangerWithImage returns a banger whose state directory is state, with the image tiny in it.
func bangerWithImage(t *testing.T, state string) *banger {
	t.Helper()
	newBanger(t) // only to skip where there is no bundle
	from := filepath.Join(os.Getenv("BANGER_RUNTIME_DIR"), "images", "tiny")
	to := filepath.Join(state, "images", "tiny")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return bangerIn(t, state)
}

// Each driver gives a disk that grows, keeps what is written and shares the rest.
func TestDiskDrivers(t *testing.T) {
	for _, c := range []struct {
		asked, driver string
		state         func(t *testing.T) string
	}{
		{"auto", "reflink", func(t *testing.T) string {
			return disktest.Mount(t, "btrfs", 2<<30, "mkfs.btrfs", "-q")
		}},
		{"qcow2", "qcow2", func(t *testing.T) string { return t.TempDir() }},
		{"copy", "copy", func(t *testing.T) string { return t.TempDir() }},
		{"dm", "dm", func(t *testing.T) string {
			if _, err := os.Stat("/dev/mapper/control"); err != nil {
				t.Skipf("SKIP: no device-mapper: %v", err)
			}
			return t.TempDir()
		}},
	} {
		t.Run(c.driver, func(t *testing.T) {
			b := bangerWithImage(t, c.state(t))
			r := b.run("", "run", "-d", "--backend", "qemu", "--image", "tiny", "--name", "web", "--disk", "3G", "--disk-driver", c.asked)
			if r.code != 0 || strings.Contains(r.err, "whole copy") != (c.driver == "copy") {
				t.Fatalf("%+v", r)
			}
			v := b.inspect("web")
			if v.Disk.Driver != c.driver || v.Disk.VirtualBytes != 3<<30 || v.Disk.AllocatedBytes <= 0 || (v.Disk.ChangedBytes == nil) != (c.driver == "copy") {
				t.Errorf("disk %+v", v.Disk)
			}
			if c.driver != "copy" && v.Disk.AllocatedBytes > 16<<20 {
				t.Errorf("a disk of which little has changed takes %d bytes", v.Disk.AllocatedBytes)
			}
			if got := b.ok("exec", "web", "--", "sh", "-c", "df -m / | tail -1 | awk '{print ($2 > 2500)}'"); got != "1\n" {
				t.Errorf("its filesystem has not grown: %q", got)
			}
			b.ok("exec", "web", "--", "sh", "-c", "head -c 8000000 /dev/urandom >/root/file && sync && md5sum /root/file >/root/sum")
			b.trims("web")
			b.ok("stop", "web")
			b.ok("start", "web")
			b.ok("exec", "web", "--", "md5sum", "-c", "/root/sum")
			if found := b.ok("system", "census"); found != "" {
				t.Errorf("census: %s", found)
			}
		})
	}
}

// trims has the guest write and delete 32 MiB and gives them back.
func (b *banger) trims(name string) {
	b.t.Helper()
	// Else the guest writes meanwhile: it goes on making its grown filesystem's inode tables.
	b.ok("exec", name, "--", "mount", "-o", "remount,noinit_itable", "/")
	b.ok("exec", name, "--", "sh", "-c", "head -c 33554432 /dev/urandom >/root/junk && sync && rm /root/junk && sync")
	const some = 28 << 20 // the rest is for the journal
	before := b.use(name)
	if before.FreedBytes == nil || *before.FreedBytes < some || before.ExclusiveBytes < some {
		b.t.Errorf("before a trim: %+v", before)
	}
	b.ok("disk", "trim", name)
	after := b.use(name)
	if after.FreedBytes == nil || *before.FreedBytes-*after.FreedBytes < some || before.ExclusiveBytes-after.ExclusiveBytes < some {
		b.t.Errorf("before a trim: %d freed of %d, after: %v of %d", *before.FreedBytes, before.ExclusiveBytes, *after.FreedBytes, after.ExclusiveBytes)
	}
}

// use is a VM's line of the ledger.
func (b *banger) use(name string) api.DiskUse { return b.useOf("vm", name) }

func (b *banger) useOf(kind, name string) (found api.DiskUse) {
	b.t.Helper()
	var all []api.DiskUse
	if err := json.Unmarshal([]byte(b.ok("disk", "usage", "--json")), &all); err != nil {
		b.t.Fatal(err)
	}
	for _, u := range all {
		if u.Kind == kind && u.Name == name {
			found = u
		}
	}
	return found
}

// A VM that writes more than the host has room for is paused, and goes on where it was once
// there is room.
func TestAFullHostPausesAVM(t *testing.T) {
	state := disktest.MountTmpfs(t, "200m")
	newBanger(t) // only to skip where there is no bundle
	b := bangerIn(t, state)
	b.ok("run", "-d", "--image", "tiny", "--name", "web", "--disk", "3G")
	b.ok("exec", "web", "--", "sh", "-c", "(head -c 400000000 /dev/urandom >/root/file && sync && touch /root/done) </dev/null >/dev/null 2>&1 &")
	b.until("web", api.StatePaused)
	if v := b.inspect("web"); !strings.Contains(v.Error, "full") || !strings.Contains(v.Error, "banger resume web") {
		t.Errorf("why: %s", v.Error)
	}
	b.ok("resume", "web") // in vain
	b.until("web", api.StatePaused)
	b.ok("daemon", "stop") // and another daemon sees it too
	if v := b.inspect("web"); v.State != api.StatePaused {
		t.Errorf("after a restart of the daemon it is %s", v.State)
	}
	if err := unix.Mount("", state, "", unix.MS_REMOUNT, "size=800m"); err != nil {
		t.Fatal(err)
	}
	b.ok("resume", "web")
	if got := b.ok("exec", "web", "--", "sh", "-c", "until test -e /root/done; do sleep 1; done; wc -c </root/file"); got != "400000000\n" {
		t.Errorf("what was written has %q bytes", got)
	}
	if err := b.ok("exec", "web", "--", "dmesg"); strings.Contains(err, "I/O error") {
		t.Errorf("the guest has seen an error:\n%s", err)
	}
}

// A snapshot of device-mapper's is given up by the kernel when the host has no room for what is written to
// it: its VM fails and tells why, and what it was a snapshot of is as it was.
func TestAFullHostFailsAVMOnDeviceMapper(t *testing.T) {
	if _, err := os.Stat("/dev/mapper/control"); err != nil {
		t.Skipf("SKIP: no device-mapper: %v", err)
	}
	b := bangerWithImage(t, disktest.Mount(t, "ext4", 640<<20, "mkfs.ext4", "-q"))
	b.ok("run", "-d", "--backend", "qemu", "--image", "tiny", "--name", "web", "--disk", "3G", "--disk-driver", "dm")
	b.ok("exec", "web", "--", "sh", "-c", "(head -c 400000000 /dev/zero >/root/file; sync) </dev/null >/dev/null 2>&1 &")
	b.until("web", api.StateFailed)
	if v := b.inspect("web"); !strings.Contains(v.Error, "snapshot is now") {
		t.Errorf("why: %s", v.Error)
	}
	b.ok("system", "verify") // the image, by its hash
	b.ok("rm", "-f", "web")
	b.ok("run", "--rm", "--backend", "qemu", "--image", "tiny", "--disk-driver", "dm", "--", "true")
}

// A disk that someone has cut or written to is not started with: who tries is told which file.
func TestADiskChangedByHand(t *testing.T) {
	b := newBanger(t)
	for name, change := range map[string]func(path string) error{
		"cut": func(path string) error { return os.Truncate(path, 512) },
		"lies": func(path string) error { // of what lies below it
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			head := make([]byte, 4096)
			_, err = f.ReadAt(head, 0)
			const at, length = 8, 16 // where a qcow2's header has its backing file's name
			name := binary.BigEndian.Uint64(head[at:])
			binary.BigEndian.PutUint32(head[length:], uint32(len("/etc/shadow")))
			copy(head[name:], "/etc/shadow")
			if err == nil {
				_, err = f.WriteAt(head, 0)
			}
			return errors.Join(err, f.Close())
		},
		"gone": os.Remove,
	} {
		b.ok("create", "--image", "tiny", "--name", name, "--disk-driver", "qcow2")
		disk := filepath.Join(b.inspect(name).Directory, "root.qcow2")
		if err := change(disk); err != nil {
			t.Fatal(err)
		}
		b.refused(1, []string{disk}, "start", name)
		if v := b.inspect(name); v.State != api.StateStopped || v.PID != 0 {
			t.Errorf("%s: %s, process %d", name, v.State, v.PID)
		}
		b.ok("rm", name)
	}
}

// until waits for a VM to be in a state.
func (b *banger) until(name string, want api.State) {
	b.t.Helper()
	eventually(b.t, name+" is "+string(want), func() bool { return b.inspect(name).State == want })
}

// Where there is no room at all nothing is promised.
func TestNoRoomForAVM(t *testing.T) {
	state := disktest.MountTmpfs(t, "200m")
	newBanger(t)
	b := bangerIn(t, state)
	b.ok("create", "--image", "tiny", "--name", "web")
	filler := filepath.Join(state, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := errors.Join(unix.Fstatfs(int(f.Fd()), &st), unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-8<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	b.refused(1, []string{"no space", "MiB are free"}, "start", "web")
	b.refused(1, []string{"no space"}, "create", "--image", "tiny")
	if v := b.inspect("web"); v.State != api.StateStopped {
		t.Errorf("it is %s", v.State)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	b.ok("start", "web")
}
