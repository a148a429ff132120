package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// TestHost runs in the lab and looks for what it promises: it is the place to see first
// when a test fails there.
func TestHost(t *testing.T) {
	if os.Getenv("BANGER_LAB") == "" {
		t.Skip("SKIP: this host is not the lab; make test-lab runs this test there")
	}
	t.Run("systemd", testSystemd)
	t.Run("resolved", testResolved)
	t.Run("KVM", testKVM)
	t.Run("vsock", testVsock)
	t.Run("network", testNetwork)
	t.Run("filesystems", testFilesystems)
	t.Run("overlay", testOverlay)
	t.Run("snapshot", testSnapshot)
	t.Run("cgroups", testCgroups)
	t.Run("firecracker", testFirecracker)
}

// sh runs a script that has to succeed and returns what it printed.
func sh(t *testing.T, script string, env ...string) string {
	t.Helper()
	c := exec.Command("sh", "-euc", script)
	c.Env = append(os.Environ(), env...)
	var errOut bytes.Buffer
	c.Stderr = &errOut
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", script, err, out, errOut.String())
	}
	return strings.TrimSpace(string(out))
}

func testSystemd(t *testing.T) {
	if init := sh(t, "cat /proc/1/comm"); init != "systemd" {
		t.Errorf("the init is %s", init)
	}
	if state := sh(t, "systemctl is-system-running --wait; systemctl --failed --plain --no-legend"); state != "running" {
		t.Errorf("the system is %s", state)
	}
}

func testResolved(t *testing.T) {
	if link := sh(t, "readlink /etc/resolv.conf"); link != "../run/systemd/resolve/stub-resolv.conf" {
		t.Errorf("/etc/resolv.conf is %s", link)
	}
	if got := sh(t, "resolvectl dns | grep Global"); !strings.Contains(got, "10.0.2.3") {
		t.Errorf("systemd-resolved has the servers %q", got)
	}
	if got := sh(t, "resolvectl query --legend=no localhost"); !strings.Contains(got, "127.0.0.1") {
		t.Errorf("localhost is %q", got)
	}
}

// kvmCreateVM is the ioctl KVM_CREATE_VM.
const kvmCreateVM = 0xae01

func testKVM(t *testing.T) {
	if kvm := host.ProbeKVM("/"); !kvm.Usable {
		t.Fatal(kvm.Reason)
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	vm, err := unix.IoctlRetInt(int(f.Fd()), kvmCreateVM)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(vm)
}

func testVsock(t *testing.T) {
	f, err := os.OpenFile("/dev/vhost-vsock", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func testNetwork(t *testing.T) {
	sh(t, `
		trap 'ip link del br-lab 2>/dev/null; ip link del tap-lab 2>/dev/null; nft delete table inet lab 2>/dev/null' EXIT
		ip link add br-lab type bridge
		ip tuntap add tap-lab mode tap
		ip link set tap-lab master br-lab up
		nft add table inet lab
		nft add chain inet lab post '{ type nat hook postrouting priority 100; }'
		nft add rule inet lab post masquerade`)
}

// testFilesystems has files share blocks on both filesystems that can.
func testFilesystems(t *testing.T) {
	for _, kind := range []string{"btrfs", "xfs"} {
		dir := t.TempDir()
		sh(t, `
			truncate -s 512M $DIR/disk
			mkfs.$KIND -q $DIR/disk
			mkdir $DIR/mnt
			mount -o loop $DIR/disk $DIR/mnt
			trap 'umount $DIR/mnt' EXIT
			head -c 1M /dev/urandom > $DIR/mnt/a
			cp --reflink=always $DIR/mnt/a $DIR/mnt/b
			cmp $DIR/mnt/a $DIR/mnt/b`, "DIR="+dir, "KIND="+kind)
	}
}

func testOverlay(t *testing.T) {
	got := sh(t, `
		mkdir $DIR/lower $DIR/upper $DIR/work $DIR/merged
		echo below > $DIR/lower/file
		mount -t overlay overlay -o lowerdir=$DIR/lower,upperdir=$DIR/upper,workdir=$DIR/work $DIR/merged
		trap 'umount $DIR/merged' EXIT
		cat $DIR/merged/file`, "DIR="+t.TempDir())
	if got != "below" {
		t.Errorf("the overlay has %q", got)
	}
}

// testSnapshot writes to a device-mapper snapshot, whose origin stays as it was.
func testSnapshot(t *testing.T) {
	dir := t.TempDir()
	base := bytes.Repeat([]byte("original"), 1<<17)
	path := filepath.Join(dir, "base")
	if err := os.WriteFile(path, base, 0o400); err != nil {
		t.Fatal(err)
	}
	got := sh(t, `
		truncate -s 4M $DIR/cow
		origin= cow=
		trap 'dmsetup remove lab-snapshot 2>/dev/null; for l in $origin $cow; do losetup -d $l; done' EXIT
		origin=$(losetup --find --show --read-only $DIR/base)
		cow=$(losetup --find --show $DIR/cow)
		dmsetup create lab-snapshot --table "0 $(blockdev --getsz $origin) snapshot $origin $cow N 8"
		printf changed: | dd of=/dev/mapper/lab-snapshot conv=notrunc oflag=sync status=none
		head -c 16 /dev/mapper/lab-snapshot`, "DIR="+dir)
	if got != "changed:original" {
		t.Errorf("the snapshot begins with %q", got)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, base) {
		t.Errorf("its base was changed (%v)", err)
	}
}

func testCgroups(t *testing.T) {
	got := strings.Fields(sh(t, "cat /sys/fs/cgroup/cgroup.controllers"))
	for _, want := range []string{"cpu", "io", "memory", "pids"} {
		if !strings.Contains(" "+strings.Join(got, " ")+" ", " "+want+" ") {
			t.Errorf("there is no controller %s in %q", want, got)
		}
	}
}

func testFirecracker(t *testing.T) {
	if _, err := exec.LookPath("firecracker"); err != nil {
		t.Skip("SKIP: the lab's host had no firecracker on its PATH to give it")
	}
	if got := sh(t, "firecracker --version"); !strings.HasPrefix(got, "Firecracker v") {
		t.Errorf("it calls itself %q", got)
	}
}
