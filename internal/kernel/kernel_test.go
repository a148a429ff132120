package kernel

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"

	"banger/internal/errs"
	"banger/internal/host"
)

func quiet(string, int64, int64) {}

// modulesDir makes a lib/modules/<version> directory with an index, as after depmod.
func modulesDir(t *testing.T, version string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "lib", "modules", version)
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var gz bytes.Buffer
	gw := gzip.NewWriter(&gz)
	if _, err := gw.Write([]byte("virtio_console's code")); err != nil {
		t.Fatal(err)
	}
	if err := gw.Close(); err != nil {
		t.Fatal(err)
	}
	write("kernel/virtio_ring.ko", "virtio_ring's code")
	write("kernel/virtio.ko", "virtio's code")
	write("kernel/virtio_pci.ko", "virtio_pci's code")
	write("kernel/virtio_blk.ko.zst", string(enc.EncodeAll([]byte("virtio_blk's code"), nil)))
	write("kernel/virtio_console.ko.gz", gz.String())
	write("kernel/sound/snd.ko", strings.Repeat("la", 10000))
	write("kernel/sound/snd.ko.debug", "symbols")
	write("modules.dep", `kernel/virtio_ring.ko:
kernel/virtio.ko: kernel/virtio_ring.ko
kernel/virtio_pci.ko: kernel/virtio.ko kernel/virtio_ring.ko
kernel/virtio_blk.ko.zst: kernel/virtio.ko kernel/virtio_ring.ko
kernel/virtio_console.ko.gz: kernel/virtio.ko kernel/virtio_ring.ko
kernel/sound/snd.ko:
`)
	write("modules.dep.bin", "index")
	write("modules.builtin", "kernel/fs/ext4/ext4.ko\n")
	if err := os.Symlink("/usr/src/linux-headers", filepath.Join(dir, "build")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func writeImage(t *testing.T, image []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(path, image, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// readCpio lists an archive: each entry's mode, path and content, in order.
func readCpio(t *testing.T, r io.Reader) string {
	t.Helper()
	var out strings.Builder
	for rd := cpio.NewReader(r); ; {
		h, err := rd.Next()
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(rd)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Guid != 0 || h.ModTime.Unix() > 0 {
			t.Errorf("%s belongs to %d:%d and is of %v", h.Name, h.Uid, h.Guid, h.ModTime)
		}
		fmt.Fprintf(&out, "%o %s", h.Mode, h.Name)
		if len(content) > 0 {
			fmt.Fprintf(&out, " %q", content)
		}
		out.WriteString("\n")
	}
}

func needMkfs(t *testing.T) {
	t.Helper()
	if _, err := host.LookPath("mkfs.ext4"); err != nil {
		t.Skip("SKIP: this host has no mkfs.ext4")
	}
}

func importTest(t *testing.T, root string) Kernel {
	t.Helper()
	needMkfs(t)
	k, err := Import(t.Context(), root, ImportSpec{
		Name: "test", Image: writeImage(t, makeBzImage(gzipped(t, makeELF(elfSpec{})))), ModulesDir: modulesDir(t, testVersion), Source: "a test",
	}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestImport(t *testing.T) {
	root := filepath.Join(t.TempDir(), "kernels")
	k := importTest(t, root)
	if k.Version != testVersion || k.Arch != "x86_64" || k.Source != "a test" || k.Bytes == 0 || !k.Modules {
		t.Errorf("imported %+v", k)
	}
	got, err := Get("test", filepath.Join(root, "nothing"), root)
	if err != nil || got != k {
		t.Errorf("got %+v, %v", got, err)
	}
	if list, err := List(root); err != nil || len(list) != 1 || list[0] != k {
		t.Errorf("list is %+v, %v", list, err)
	}
	vmlinux, err := os.ReadFile(k.Vmlinux)
	if err != nil || !bytes.Equal(vmlinux, makeELF(elfSpec{})) {
		t.Errorf("the vmlinux differs: %v", err)
	}

	f, err := os.Open(k.ModulesCpio)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := `40755 banger
100644 banger/modules "/lib/modules/6.1.0-99-test-amd64/kernel/virtio_ring.ko\t\n/lib/modules/6.1.0-99-test-amd64/kernel/virtio.ko\t\n/lib/modules/6.1.0-99-test-amd64/kernel/virtio_pci.ko\t\n/lib/modules/6.1.0-99-test-amd64/kernel/virtio_blk.ko\tvirtio:2\n/lib/modules/6.1.0-99-test-amd64/kernel/virtio_console.ko\tvirtio:3\n"
40755 lib
40755 lib/modules
40755 lib/modules/6.1.0-99-test-amd64
40755 lib/modules/6.1.0-99-test-amd64/kernel
100644 lib/modules/6.1.0-99-test-amd64/kernel/virtio.ko "virtio's code"
100644 lib/modules/6.1.0-99-test-amd64/kernel/virtio_blk.ko "virtio_blk's code"
100644 lib/modules/6.1.0-99-test-amd64/kernel/virtio_console.ko "virtio_console's code"
100644 lib/modules/6.1.0-99-test-amd64/kernel/virtio_pci.ko "virtio_pci's code"
100644 lib/modules/6.1.0-99-test-amd64/kernel/virtio_ring.ko "virtio_ring's code"
`
	if got := readCpio(t, f); got != want {
		t.Errorf("the archive has\n%swant\n%s", got, want)
	}

	listing, err := host.Output(t.Context(), host.Command{Path: "debugfs", Args: []string{"-R", "ls -p /", k.ModulesImage}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/040755/0/0/kernel//", "/100644/0/0/modules.dep/"} {
		if !strings.Contains(string(listing), want) {
			t.Errorf("the modules' image has no %s:\n%s", want, listing)
		}
	}
	if strings.Contains(string(listing), "/build/") {
		t.Errorf("the modules' image has a link to headers:\n%s", listing)
	}
	if err := host.Run(t.Context(), host.Command{Path: "e2fsck", Args: []string{"-f", "-n", k.ModulesImage}}); err != nil {
		t.Errorf("the modules' image: %v", err)
	}

	if err := Remove(root, "test"); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestImportWithoutModules(t *testing.T) {
	k, err := Import(t.Context(), t.TempDir(), ImportSpec{Name: "plain", Image: writeImage(t, makeELF(elfSpec{}))}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if k.ModulesCpio != "" || k.ModulesImage != "" || k.Version != testVersion || !filepath.IsAbs(k.Source) {
		t.Errorf("imported %+v", k)
	}
	path, err := Initramfs(t.Context(), k, []byte("agent"), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size()%cpioAlign != 0 {
		t.Errorf("the initramfs: %v %v", info, err)
	}
}

func TestImportRefuses(t *testing.T) {
	needMkfs(t)
	good := writeImage(t, makeELF(elfSpec{}))
	empty := filepath.Join(t.TempDir(), testVersion)
	if err := os.MkdirAll(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	noDriver := modulesDir(t, testVersion)
	if err := os.WriteFile(filepath.Join(noDriver, "modules.dep"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	gone := modulesDir(t, testVersion)
	if err := os.Remove(filepath.Join(gone, "kernel/virtio.ko")); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, c := range []struct {
		name string
		spec ImportSpec
		kind errs.Kind
		want string
	}{
		{"name", ImportSpec{Name: "../x", Image: good}, errs.Invalid, "can be called"},
		{"no file", ImportSpec{Name: "x", Image: "/nonexistent/vmlinuz"}, errs.Invalid, "no such file"},
		{"directory", ImportSpec{Name: "x", Image: root}, errs.Invalid, "is not a file"},
		{"garbage", ImportSpec{Name: "x", Image: writeImage(t, []byte("hello"))}, errs.Invalid, "no kernel that banger can boot: it is too short"},
		{"modules of another kernel", ImportSpec{Name: "x", Image: good, ModulesDir: modulesDir(t, "5.10.0-1-amd64")}, errs.Invalid, "another kernel: this one is " + testVersion},
		{"modules not by version", ImportSpec{Name: "x", Image: good, ModulesDir: "/lib/modules"}, errs.Invalid, "not named like a kernel's version"},
		{"no modules directory", ImportSpec{Name: "x", Image: good, ModulesDir: "/nonexistent/" + testVersion}, errs.Invalid, "can't read the modules"},
		{"no drivers", ImportSpec{Name: "x", Image: good, ModulesDir: noDriver}, errs.Invalid, "no driver virtio,"},
		{"missing module", ImportSpec{Name: "x", Image: good, ModulesDir: gone}, errs.Internal, "virtio.ko"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Import(t.Context(), root, c.spec, quiet)
			if errs.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v (%s), want %s with %q", err, errs.KindOf(err), c.kind, c.want)
			}
		})
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Import(cancelled, root, ImportSpec{Name: "x", Image: good, ModulesDir: modulesDir(t, testVersion)}, quiet); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestImportTwice(t *testing.T) {
	root, image := t.TempDir(), writeImage(t, makeELF(elfSpec{}))
	if _, err := Import(t.Context(), root, ImportSpec{Name: "x", Image: image}, quiet); err != nil {
		t.Fatal(err)
	}
	if _, err := Import(t.Context(), root, ImportSpec{Name: "x", Image: image}, quiet); errs.KindOf(err) != errs.Conflict || errs.HintOf(err) == "" {
		t.Errorf("a taken name: %v", err)
	}
	newer := writeImage(t, makeELF(elfSpec{version: "6.2.0"}))
	if _, err := Import(t.Context(), root, ImportSpec{Name: "x", Image: newer, Replace: true}, quiet); err != nil {
		t.Fatal(err)
	}
	if k, err := Get("x", root); err != nil || k.Version != "6.2.0" {
		t.Errorf("replaced: %+v, %v", k, err)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestInitramfs(t *testing.T) {
	k := importTest(t, t.TempDir())
	cache := filepath.Join(t.TempDir(), "cache")
	var wg sync.WaitGroup
	paths := make([]string, 8)
	for i := range paths {
		wg.Go(func() {
			var err error
			if paths[i], err = Initramfs(t.Context(), k, []byte("the agent"), cache); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(slices.Compact(slices.Clone(paths))) != 1 {
		t.Errorf("callers at the same time got %q", paths)
	}
	entries, err := os.ReadDir(cache)
	if err != nil || len(entries) != 1 {
		t.Fatalf("the cache has %v, %v", entries, err)
	}
	whole, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	modules, err := os.ReadFile(k.ModulesCpio)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(whole, modules) || len(modules)%cpioAlign != 0 || len(whole)%cpioAlign != 0 {
		t.Fatalf("%d bytes do not begin with the modules' %d", len(whole), len(modules))
	}
	agent := whole[len(modules):]
	want := "40755 dev\n40755 proc\n40755 sys\n40755 sysroot\n20600 dev/console\n100755 init \"the agent\"\n"
	if got := readCpio(t, bytes.NewReader(agent)); got != want {
		t.Errorf("the agent's archive has\n%swant\n%s", got, want)
	}
	// The library does not read device numbers; each header's last fields before the
	// name's length are its device.
	at := bytes.Index(agent, []byte("dev/console"))
	if got := string(agent[at-110+rdevOffset : at-110+rdevOffset+16]); got != "0000000500000001" {
		t.Errorf("the console's device is %s", got)
	}
	other, err := Initramfs(t.Context(), k, []byte("another"), cache)
	if err != nil || other == paths[0] {
		t.Errorf("another agent: %s, %v", other, err)
	}
}
