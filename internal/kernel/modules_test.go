package kernel

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// debianDep is modules.dep of Debian's cloud kernel, cut down to what matters.
const debianDep = `kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_pci_modern_dev.ko:
kernel/drivers/virtio/virtio_pci_legacy_dev.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_pci_legacy_dev.ko kernel/drivers/virtio/virtio_pci_modern_dev.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_mmio.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/virtio_console.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/net/core/failover.ko:
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/net/vmw_vsock/vsock.ko:
kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko: kernel/net/vmw_vsock/vsock.ko
kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko: kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko kernel/net/vmw_vsock/vsock.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/sound/never.ko: kernel/sound/mind.ko
`

const debianBuiltin = "kernel/fs/ext4/ext4.ko\nkernel/lib/crc16.ko\n"

func show(loads []ModuleLoad) string {
	var b strings.Builder
	for _, l := range loads {
		fmt.Fprintf(&b, "%s %s\n", moduleName(l.Path), l.Condition)
	}
	return b.String()
}

func TestPlan(t *testing.T) {
	for _, c := range []struct{ name, dep, builtin, want string }{
		{"Debian", debianDep, debianBuiltin, `virtio_ring 
virtio 
virtio_pci_legacy_dev 
virtio_pci_modern_dev 
virtio_pci 
virtio_mmio cmdline:virtio_mmio.device
virtio_blk virtio:2
virtio_console virtio:3
failover virtio:1
net_failover virtio:1
virtio_net virtio:1
virtio_rng virtio:4
vsock virtio:19
vmw_vsock_virtio_transport_common virtio:19
vmw_vsock_virtio_transport virtio:19
`},
		{"all built in", "", "a/virtio.ko\na/virtio_ring.ko\na/virtio_pci.ko\na/virtio_blk.ko\na/ext4.ko\n", ""},
		{
			"ext4 as a module, compressed, and a shared dependency",
			"v/virtio_blk.ko.xz: lib/shared.ko.xz\nv/virtio-rng.ko.zst: lib/shared.ko.xz\nfs/ext4.ko.xz: fs/jbd2.ko.xz fs/mbcache.ko.xz lib/crc16.ko.xz\nlib/shared.ko.xz:\nfs/jbd2.ko.xz:\nfs/mbcache.ko.xz:\nlib/crc16.ko.xz:\n",
			"a/virtio.ko\na/virtio_ring.ko\na/virtio_mmio.ko\n",
			"shared virtio:2,4\nvirtio_blk virtio:2\nvirtio_rng virtio:4\njbd2 \nmbcache \ncrc16 \next4 \n",
		},
		{
			"what one driver always needs is always loaded",
			"v/virtio_blk.ko: lib/shared.ko\nfs/ext4.ko: lib/shared.ko\n",
			"a/virtio.ko\na/virtio_ring.ko\na/virtio_mmio.ko\n",
			"shared \nvirtio_blk virtio:2\next4 \n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			ix, err := parseModules(strings.NewReader(c.dep), strings.NewReader(c.builtin))
			if err != nil {
				t.Fatal(err)
			}
			loads, err := ix.plan(drivers)
			if err != nil {
				t.Fatal(err)
			}
			if got := show(loads); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}

func TestPlanNamesWhatIsMissing(t *testing.T) {
	for _, c := range []struct{ builtin, want string }{
		{"", "virtio, virtio_ring, virtio_pci or virtio_mmio, virtio_blk, ext4"},
		{"a/virtio.ko\na/virtio_ring.ko\na/virtio_mmio.ko\na/ext4.ko\n", "no driver virtio_blk,"},
		{"a/virtio.ko\na/virtio_ring.ko\na/virtio_blk.ko\na/ext4.ko\n", "no driver virtio_pci or virtio_mmio,"},
	} {
		ix, err := parseModules(strings.NewReader(""), strings.NewReader(c.builtin))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = ix.plan(drivers); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.builtin, err)
		}
	}
}

func TestEither(t *testing.T) {
	for _, c := range []struct{ a, b, want string }{
		{"", "", ""},
		{"virtio:1", "", ""},
		{"", "virtio:1", ""},
		{"virtio:1", "virtio:1", "virtio:1"},
		{"virtio:1", "virtio:19", "virtio:1,19"},
		{"virtio:1,19", "virtio:19", "virtio:1,19"},
		{"virtio:19", "virtio:1", "virtio:19,1"},
		{"cmdline:x", "virtio:1", ""},
		{"cmdline:x", "cmdline:x", "cmdline:x"},
		{"cmdline:x", "cmdline:y", ""},
	} {
		if got := either(c.a, c.b); got != c.want {
			t.Errorf("either(%q, %q) = %q, want %q", c.a, c.b, got, c.want)
		}
	}
}

func TestParseModulesRefuses(t *testing.T) {
	for _, dep := range []string{
		"kernel/a.ko\n", "/kernel/a.ko:\n", "../a.ko:\n", "kernel/../../a.ko:\n", "kernel//a.ko:\n", "kernel/a:\n", ":\n",
		"kernel/a.ko: ../../etc/shadow.ko\n", "kernel/a.ko: /etc/shadow.ko\n", "kernel/a\x1b.ko:\n", "kernel/a\t.ko:\n",
	} {
		if _, err := parseModules(strings.NewReader(dep), strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "modules.dep: line 1") {
			t.Errorf("%q: %v", dep, err)
		}
	}
	if _, err := parseModules(strings.NewReader(""), strings.NewReader("../x.ko\n")); err == nil {
		t.Error("a path out of the directory in modules.builtin was accepted")
	}
}

// FuzzModules checks that each module comes once, after those it needs, and below the
// modules directory.
func FuzzModules(f *testing.F) {
	f.Add(debianDep, debianBuiltin)
	f.Add("k/virtio.ko: k/virtio_ring.ko\nk/virtio_ring.ko: k/virtio.ko\n", "a/ext4.ko\n# comment\n\n")
	f.Fuzz(func(t *testing.T, dep, builtin string) {
		ix, err := parseModules(strings.NewReader(dep), strings.NewReader(builtin))
		if err != nil {
			return
		}
		lenient := slices.Clone(drivers)
		for i := range lenient {
			lenient[i].need = ""
		}
		loads, err := ix.plan(lenient)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, l := range loads {
			if seen[l.Path] {
				t.Errorf("%q comes twice", l.Path)
			}
			seen[l.Path] = true
			if strings.HasPrefix(l.Path, "/") || strings.HasPrefix(l.Path, "..") || strings.ContainsAny(l.Path+l.Condition, "\t\n") {
				t.Errorf("%q can't be on the list", l.Path)
			}
		}
		for _, l := range loads {
			for _, d := range ix.deps[l.Path] {
				if !seen[d] {
					t.Errorf("%q needs %q, which is not there", l.Path, d)
				}
			}
		}
	})
}
