package runtimedir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/host"
	"banger/internal/image/apt"
	"banger/internal/kernel"
)

// TestBuildKernel takes the real package through apt.
func TestBuildKernel(t *testing.T) {
	for _, program := range []string{"apt-get", "dpkg-deb", "depmod", "mkfs.ext4", "e2fsck"} {
		if _, err := host.LookPath(program); err != nil {
			t.Skipf("SKIP: this host has no %s", program)
		}
	}
	if _, err := apt.HostSources(apt.Etc, "bookworm"); err != nil {
		t.Skip("SKIP: the apt sources of this host have no mirror of Debian bookworm")
	}
	dir := t.TempDir()
	leftover := filepath.Join(dir, kernelsDir, ".staging-killed")
	if err := os.MkdirAll(leftover, 0o755); err != nil {
		t.Fatal(err)
	}
	quiet := func(string, int64, int64) {}
	if err := Build(t.Context(), dir, Options{Only: []string{"kernel"}}, quiet); err != nil {
		t.Fatal(err)
	}
	k, err := kernel.Get("debian", Bundle{Dir: dir}.KernelsDir())
	if err != nil {
		t.Fatal(err)
	}
	if k.ModulesCpio == "" || !strings.Contains(k.Version, "cloud-amd64") || !strings.Contains(k.Source, "linux-image-"+k.Version+" ") {
		t.Errorf("the kernel is %+v", k)
	}
	if err := host.Run(t.Context(), host.Command{Path: "e2fsck", Args: []string{"-f", "-n", k.ModulesImage}}); err != nil {
		t.Errorf("its modules' image: %v", err)
	}
	modules, err := os.ReadFile(k.ModulesCpio)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/virtio_pci.ko\t\n", "/virtio_blk.ko\tvirtio:2\n", "/virtio_console.ko\tvirtio:3\n"} {
		if !strings.Contains(string(modules), want) {
			t.Errorf("the initramfs's list of modules has no %q", want)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(dir, kernelsDir)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}

	before, err := ReadRecord(dir)
	if err != nil || len(before.Artefacts) != 1 || len(before.Artefacts[0].Files) != 4 {
		t.Fatalf("the record: %+v, %v", before, err)
	}
	if err := Build(t.Context(), dir, Options{Only: []string{"kernel"}}, func(stage string, _, _ int64) { t.Errorf("a second build did: %s", stage) }); err != nil {
		t.Fatal(err)
	}
}
