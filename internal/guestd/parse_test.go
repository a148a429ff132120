package guestd

import (
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/guest/proto"
)

func TestParsePasswd(t *testing.T) {
	passwd := []byte("# comment\nbroken:x:1\nbad:x:one:1::/:\nroot:x:0:0:root:/root:/bin/bash\n1000:x:7:7::/seven:\nuser:x:1000:100:Name,,:/home/user:/bin/zsh\n")
	tests := []struct {
		who  string
		want account
		ok   bool
	}{
		{"root", account{name: "root", home: "/root", shell: "/bin/bash"}, true},
		{"user", account{name: "user", uid: 1000, gid: 100, home: "/home/user", shell: "/bin/zsh"}, true},
		{"1000", account{name: "1000", uid: 7, gid: 7, home: "/seven"}, true}, // a name before a number
		{"0", account{name: "root", home: "/root", shell: "/bin/bash"}, true},
		{"bad", account{}, false},
		{"", account{}, false},
	}
	for _, tt := range tests {
		if got, ok := parsePasswd(passwd, tt.who); ok != tt.ok || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: got %+v, %v", tt.who, got, ok)
		}
	}
	groups := parseGroups([]byte("a:x:1:user,other\nb:x:2:\nc:x:3:other,user\nd:x:x:user\n"), "user")
	if !slices.Equal(groups, []uint32{1, 3}) {
		t.Errorf("groups %v", groups)
	}
}

func TestRunAs(t *testing.T) {
	root := t.TempDir()
	os.Mkdir(filepath.Join(root, "etc"), 0o755)
	os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("app:x:100:101::/srv:/bin/app\n"), 0o644)
	os.WriteFile(filepath.Join(root, "etc/group"), []byte("app:x:101:\nmore:x:102:app\n"), 0o644)
	a := &Agent{Config: Config{Root: root}}
	for who, want := range map[string]account{
		"app":       {name: "app", uid: 100, gid: 101, groups: []uint32{102}, home: "/srv", shell: "/bin/app"},
		"100":       {name: "app", uid: 100, gid: 101, groups: []uint32{102}, home: "/srv", shell: "/bin/app"},
		"app:more":  {name: "app", uid: 100, gid: 102, home: "/srv", shell: "/bin/app"},
		"1000":      {name: "1000", uid: 1000, home: "/", shell: "/bin/sh"},
		"1000:2000": {name: "1000", uid: 1000, gid: 2000, home: "/", shell: "/bin/sh"},
		"":          {name: "root", home: "/root", shell: "/bin/sh"},
		":more":     {name: "root", gid: 102, home: "/root", shell: "/bin/sh"},
	} {
		if got, err := a.runAs(who); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %+v (%v), want %+v", who, got, err, want)
		}
	}
	for _, who := range []string{"nobody", "-1", "app:none", "4294967296", "app:-1"} {
		if got, err := a.runAs(who); errs.KindOf(err) != errs.NotFound {
			t.Errorf("%q is %+v (%v)", who, got, err)
		}
	}
}

func TestParseEnvironment(t *testing.T) {
	got := parseEnvironment([]byte("A=1\n# B=2\nexport C='x y'\n  D=\"z\"\nE=\nbroken\n=F\nG H=1\nI='\n"))
	want := []string{"A=1", "C=x y", "D=z", "E=", "I='"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := lastWins([]string{"A=1", "B=2", "A=3", "junk", "C=\x00"}); !slices.Equal(got, []string{"B=2", "A=3"}) {
		t.Errorf("got %q", got)
	}
}

func TestParseModules(t *testing.T) {
	mods, err := parseModules([]byte("/lib/a.ko\t\n/lib/b.ko\tvirtio:1,19\n\n/lib/c.ko\tcmdline:virtio_mmio.device\n/lib/d.ko\n"))
	want := []module{{path: "/lib/a.ko"}, {path: "/lib/b.ko", virtio: []uint64{1, 19}},
		{path: "/lib/c.ko", cmdline: "virtio_mmio.device"}, {path: "/lib/d.ko"}}
	if err != nil || !reflect.DeepEqual(mods, want) {
		t.Fatalf("got %+v, %v", mods, err)
	}
	for i, tt := range []struct {
		ids     []uint64
		cmdline string
		wanted  []bool
	}{
		{nil, "quiet", []bool{true, false, false, true}},
		{[]uint64{2, 19}, "quiet", []bool{true, true, false, true}},
		{[]uint64{2}, "a virtio_mmio.device=4K@0xd0000000:5", []bool{true, false, true, true}},
	} {
		for j, m := range mods {
			if m.wanted(tt.ids, tt.cmdline) != tt.wanted[j] {
				t.Errorf("case %d: %s", i, m.path)
			}
		}
	}
}

func TestModulesInStages(t *testing.T) {
	mods, err := parseModules([]byte("ring\t\nbus\tcmdline:mmio\nshared\tvirtio:1,2\nblk\tvirtio:2\nconsole\tvirtio:3\nnet\tvirtio:1\next4\t\n"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	first, disks, others := inStages(mods)
	for _, stage := range [][]module{first, disks, others} {
		var paths []string
		for _, m := range stage {
			paths = append(paths, m.path)
		}
		got = append(got, strings.Join(paths, " "))
	}
	if want := []string{"ring bus shared ext4", "blk", "console net"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func FuzzParseModules(f *testing.F) {
	f.Add([]byte("/a\tvirtio:1\n/b\tcmdline:x\n"))
	f.Add([]byte("/a\tother:1\n"))
	f.Fuzz(func(t *testing.T, list []byte) {
		mods, err := parseModules(list)
		for _, m := range mods {
			if err == nil && m.path == "" {
				t.Error("a module without a path")
			}
		}
	})
}

func TestParseBootArgs(t *testing.T) {
	got := parseBootArgs("console=ttyS0 banger.root=/dev/vda quiet banger.modules=/dev/vdb banger.init=/bin/x\n")
	if want := (bootArgs{root: "/dev/vda", modules: "/dev/vdb", init: "/bin/x"}); got != want {
		t.Errorf("got %+v", got)
	}
	if got := parseBootArgs("banger.poweroff=restart").powerOff(); got != unix.LINUX_REBOOT_CMD_RESTART {
		t.Errorf("without a power switch it ends by %#x", got)
	}
}

// systemd runs /run/initramfs/shutdown only if it may be executed; what it does shows in a VM.
func TestRestartIsInstalled(t *testing.T) {
	run := t.TempDir()
	if err := installRestart(run); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(run, "initramfs", "shutdown")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if len(f.Progs) != 1 {
		t.Fatalf("it has %d segments", len(f.Progs))
	}
	// The code is entered where it is in the file, and all of it is mapped.
	code := make([]byte, len(restartProgram))
	if _, err := f.Progs[0].ReadAt(code, int64(f.Entry-f.Progs[0].Vaddr)); err != nil || string(code) != restartProgram {
		t.Errorf("at its entry is %x, %v", code, err)
	}
}

func TestParseExt4(t *testing.T) {
	sb := make([]byte, 1024)
	binary.LittleEndian.PutUint16(sb[ext4MagicAt:], ext4Magic)
	binary.LittleEndian.PutUint32(sb[ext4LogSize:], 2)
	binary.LittleEndian.PutUint32(sb[ext4BlocksLow:], 1000)
	binary.LittleEndian.PutUint32(sb[ext4BlocksHigh:], 1)
	if e, err := parseExt4(sb); err != nil || e.bytes() != 1000*4096 {
		t.Errorf("got %+v, %v", e, err)
	}
	binary.LittleEndian.PutUint32(sb[ext4Incompat:], ext4Is64Bit)
	if e, err := parseExt4(sb); err != nil || e.blocks != 1<<32+1000 {
		t.Errorf("64 bit: got %+v, %v", e, err)
	}
	sb[ext4MagicAt] = 0
	if _, err := parseExt4(sb); err == nil {
		t.Error("no magic, no error")
	}
}

func TestParseStats(t *testing.T) {
	var s proto.Stats
	parseMeminfo(&s, []byte("MemTotal:  1000 kB\nMemFree: 5 kB\nMemAvailable:  600 kB\n"))
	parseLoadavg(&s, []byte("0.25 0.10 0.05 1/80 1234\n"))
	parseStat(&s, []byte("cpu  100 1 50 9999 77 2 3 4 10 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"))
	parseNetDev(&s, []byte("Inter-|   Receive\n face |bytes\n  lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\neth0:1000 1 0 0 0 0 0 0 2000 1 0 0 0 0 0 0\n"))
	want := proto.Stats{MemoryTotalBytes: 1000 << 10, MemoryAvailableBytes: 600 << 10, Load1: 0.25, CPUSeconds: 1.6, RxBytes: 1000, TxBytes: 2000}
	if s != want {
		t.Errorf("got %+v", s)
	}
	live, err := readStats("/")
	if err != nil || live.MemoryTotalBytes <= 0 || live.RootTotalBytes <= 0 {
		t.Errorf("this machine: %+v, %v", live, err)
	}
}

func TestHostsWith(t *testing.T) {
	tests := []struct{ old, want string }{
		{"", "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\tbox\n"},
		{"127.0.0.1 localhost", "127.0.0.1 localhost\n127.0.1.1\tbox\n"},
		{"127.0.1.1 a b\n# x\n127.0.1.1 c\n", "127.0.1.1\tbox\n# x\n"},
		{"  127.0.1.1   box\n", "  127.0.1.1   box\n"},
		{"127.0.1.10 x\n", "127.0.1.10 x\n127.0.1.1\tbox\n"},
	}
	for _, tt := range tests {
		if got := string(hostsWith([]byte(tt.old), "box")); got != tt.want {
			t.Errorf("%q: got %q", tt.old, got)
		}
	}
}

func FuzzHostsWith(f *testing.F) {
	f.Add([]byte("127.0.0.1 localhost\n127.0.1.1 old\n"))
	f.Fuzz(func(t *testing.T, old []byte) {
		once := hostsWith(old, "box")
		if twice := hostsWith(once, "box"); string(twice) != string(once) {
			t.Errorf("%q, then %q", once, twice)
		}
	})
}

// Whatever links an image holds, a name resolves to a path below its root.
func FuzzResolve(f *testing.F) {
	f.Add("etc/a/b", "/", "../..")
	f.Add("a/../../x", "a", "b")
	f.Add("b/b/b", "../../../etc", "/a/..")
	f.Fuzz(func(t *testing.T, name, a, b string) {
		root := t.TempDir()
		os.Symlink(a, root+"/a")
		os.Symlink(b, root+"/b")
		path, err := rootfs(root).resolve(name)
		if err != nil {
			return // too many links
		}
		if path != root && !strings.HasPrefix(path, root+"/") || path != filepath.Clean(path) {
			t.Errorf("%q resolves to %q, outside %q", name, path, root)
		}
	})
}
