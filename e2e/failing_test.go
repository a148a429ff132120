package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
)

// failing is a filesystem on a disk that can be told to fail: a loop device, of whose backing file
// what has not been written yet lies in a tmpfs that is full.
type failing struct {
	t           *testing.T
	disk, mount string
}

func newFailing(t *testing.T, features string) *failing {
	t.Helper()
	for _, program := range []string{"mkfs.ext4", "mount", "umount"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("SKIP: ", err)
		}
	}
	f := &failing{t: t, disk: filepath.Join(tmpfs(t, "40m"), "disk"), mount: t.TempDir()}
	if err := errors.Join(os.WriteFile(f.disk, nil, 0o600), os.Truncate(f.disk, 200<<20)); err != nil {
		t.Fatal(err)
	}
	f.run("mkfs.ext4", "-q", "-m", "0", "-O", features, "-E", "lazy_itable_init=0,lazy_journal_init=0", f.disk)
	f.attach()
	t.Cleanup(f.detach)
	return f
}

func (f *failing) run(name string, args ...string) {
	f.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		f.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func (f *failing) attach() { f.run("mount", "-o", "loop,errors=continue", f.disk, f.mount) }
func (f *failing) detach() { f.run("umount", f.mount) }

func (f *failing) ballast() string { return f.disk + ".ballast" }

// fail has writes fail from now on to where nothing was written yet.
func (f *failing) fail() {
	f.t.Helper()
	b, err := os.Create(f.ballast())
	if err != nil {
		f.t.Fatal(err)
	}
	defer b.Close()
	zeros := make([]byte, unix.Getpagesize())
	for err == nil {
		_, err = b.Write(zeros)
	}
	if !errors.Is(err, unix.ENOSPC) {
		f.t.Fatal(err)
	}
}

func (f *failing) heal() {
	f.t.Helper()
	if err := os.Remove(f.ballast()); err != nil {
		f.t.Fatal(err)
	}
}

// Where the database's writes and flushes fail, nothing is acknowledged that is not kept, the
// daemon says so, and rm works once the disk does.
func TestADiskThatFails(t *testing.T) {
	for features, remains := range map[string]bool{
		"^has_journal": true,
		"has_journal":  false, // a filesystem with a journal that can't be written is for reading only
	} {
		t.Run(features, func(t *testing.T) {
			f := newFailing(t, features)
			b := bangerIn(t, filepath.Join(f.mount, "state"))
			known := map[string]bool{}
			create := func(name string) result { return b.run("", "create", "--image", "tiny", "--name", name) }
			for i := range 3 {
				name := fmt.Sprint("before-", i)
				known[name] = true
				b.ok("create", "--image", "tiny", "--name", name)
			}
			f.fail()
			refused := 0
			for i := range 8 {
				name := fmt.Sprint("during-", i)
				r := create(name)
				switch {
				case r.code == 0:
					known[name] = true
				case !strings.Contains(r.err, "can't") || !strings.Contains(r.err, "dmesg"):
					t.Errorf("create %s says %q", name, r.err)
				default:
					refused++
				}
			}
			if refused == 0 {
				t.Fatal("nothing failed")
			}
			if r := b.run("", "rm", "before-0"); r.code == 0 {
				delete(known, "before-0")
			} else if !strings.Contains(r.err, "can't") {
				t.Errorf("rm says %q", r.err)
			}
			all(t, known, b.list())
			f.heal()
			if !remains {
				b.ok("daemon", "stop")
				f.detach()
				f.attach()
			}
			now := b.list()
			all(t, known, now)
			for name := range now {
				b.ok("rm", name)
			}
			if left := b.list(); len(left) > 0 {
				t.Errorf("rm left %+v", left)
			}
			b.ok("create", "--image", "tiny")
		})
	}
}

// all checks that every VM that was acknowledged is there.
func all(t *testing.T, known map[string]bool, there map[string]api.VM) {
	t.Helper()
	for name := range known {
		if _, ok := there[name]; !ok {
			t.Errorf("%s was acknowledged and is gone; there are %v", name, there)
		}
	}
}
