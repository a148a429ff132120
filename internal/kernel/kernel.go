// Package kernel owns guest kernels: it takes the bootable ELF file out of a vmlinuz,
// packs the modules that the initramfs loads and all others into one read-only image, and
// keeps the results by name. It knows nothing of virtual machines, nor of where kernels
// come from.
package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/image/ext4"
	"banger/internal/image/shelf"
)

// Files of a kernel's directory.
const (
	vmlinuxFile = "vmlinux"
	cpioFile    = "modules.cpio"
	imageFile   = "modules.ext4"
)

var kernels = shelf.Shelf{Kind: "kernel", Record: "kernel.json"}

// Kernel is a kernel that machines can boot.
type Kernel struct {
	Name    string `json:"name"`    // a DNS label
	Version string `json:"version"` // as uname -r says, "" if unknown
	Arch    string `json:"arch"`    // as uname -m says
	Source  string `json:"source"`  // where it came from, for people
	Dir     string `json:"-"`
	Vmlinux string `json:"-"` // absolute path of the ELF file
	// ModulesCpio and ModulesImage are absolute paths, or "" for a kernel imported without
	// modules. The image is an ext4 filesystem to be mounted, read-only, at
	// /lib/modules/<Version>.
	ModulesCpio  string    `json:"-"`
	ModulesImage string    `json:"-"`
	SHA256       string    `json:"sha256"` // of the vmlinux
	Bytes        int64     `json:"bytes"`  // allocated by all its files
	Modules      bool      `json:"modules"`
	CreatedAt    time.Time `json:"created_at"`
}

// ImportSpec says what to import.
type ImportSpec struct {
	Name       string // a DNS label
	Image      string // path of a vmlinuz or vmlinux
	ModulesDir string // its lib/modules/<version> directory, or "" for none
	Source     string // where it comes from, for people; "" means the path of Image
	Replace    bool   // a kernel of this name, once the new one is finished
}

// Progress reports work: a stage's name, how much is done, of how much (0, 0: unknown).
type Progress = func(stage string, done, total int64)

// Import makes the kernel root/<name>. It appears whole or not at all. errs.Conflict if
// the name is taken, errs.Invalid if the image is no kernel that banger boots.
func Import(ctx context.Context, root string, spec ImportSpec, progress Progress) (Kernel, error) {
	stage, err := kernels.Begin(root, spec.Name, spec.Replace)
	if err != nil {
		return Kernel{}, err
	}
	defer stage.Discard()
	k, err := build(ctx, stage, spec, progress)
	if err != nil {
		if _, ok := errors.AsType[*errs.Error](err); ok || ctx.Err() != nil {
			return Kernel{}, err
		}
		return Kernel{}, errs.New(errs.Internal, "can't import kernel %s", spec.Name).Because(err)
	}
	dir, err := stage.Commit(k)
	if err != nil {
		return Kernel{}, err
	}
	return k.at(dir), nil
}

// build makes the files of a kernel in stage.
func build(ctx context.Context, stage *shelf.Stage, spec ImportSpec, progress Progress) (Kernel, error) {
	progress("reading "+filepath.Base(spec.Image), 0, 0)
	vmlinux, err := readVmlinux(spec.Image)
	if err != nil {
		return Kernel{}, err
	}
	if spec.Source == "" {
		spec.Source = spec.Image
	}
	sum := sha256.Sum256(vmlinux)
	k := Kernel{
		Name: spec.Name, Version: kernelVersion(vmlinux), Arch: "x86_64", Source: spec.Source,
		SHA256: hex.EncodeToString(sum[:]), Modules: spec.ModulesDir != "", CreatedAt: time.Now().UTC().Truncate(time.Second),
	}
	if err := stage.Write(vmlinuxFile, vmlinux); err != nil {
		return Kernel{}, err
	}
	if k.Modules {
		if err := addModules(ctx, stage, &k, spec.ModulesDir, progress); err != nil {
			return Kernel{}, err
		}
	}
	k.Bytes, err = stage.Bytes()
	return k, err
}

// readVmlinux reads and unpacks the kernel at path.
func readVmlinux(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errs.New(errs.Invalid, "can't read the kernel").Because(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, errs.New(errs.Invalid, "%s is not a file", path)
	}
	image, err := io.ReadAll(io.LimitReader(f, maxImageBytes+1))
	if err != nil {
		return nil, errs.New(errs.Invalid, "can't read the kernel").Because(err)
	}
	if len(image) > maxImageBytes {
		return nil, errs.New(errs.Invalid, "%s is no kernel: it has more than %d MiB", path, maxImageBytes>>20)
	}
	vmlinux, err := ExtractVmlinux(image)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s is no kernel that banger can boot", path).Because(err).
			Try("give the vmlinuz (bzImage) or vmlinux of an x86-64 kernel with CONFIG_PVH")
	}
	return vmlinux, nil
}

// addModules packs the modules of dir into stage.
func addModules(ctx context.Context, stage *shelf.Stage, k *Kernel, dir string, progress Progress) error {
	version := filepath.Base(filepath.Clean(dir))
	if !isVersion(version) {
		return errs.New(errs.Invalid, "%s is not named like a kernel's version", dir).Try("give its lib/modules/<version> directory")
	}
	if k.Version != "" && k.Version != version {
		return errs.New(errs.Invalid, "the modules in %s are those of another kernel: this one is %s", dir, k.Version)
	}
	k.Version = version

	// depmod wants the tree below lib/modules, and nothing may be written to dir.
	scratch := filepath.Join(stage.Dir, "scratch")
	tree := filepath.Join(scratch, "lib", "modules", version)
	progress("copying modules", 0, 0)
	if err := copyModules(ctx, dir, tree); err != nil {
		return errs.New(errs.Invalid, "can't read the modules in %s", dir).Because(err)
	}
	if err := depmod(ctx, scratch, tree, version); err != nil {
		return err
	}
	loads, err := planIn(tree)
	if err != nil {
		return errs.New(errs.Invalid, "the modules in %s do not do", dir).Because(err)
	}
	cpio, err := modulesCpio(tree, version, loads)
	if err != nil {
		return fmt.Errorf("pack the initramfs's modules: %w", err)
	}
	if err := stage.Write(cpioFile, cpio); err != nil {
		return err
	}
	progress("packing modules", 0, 0)
	if err := ext4.MakeReadOnly(ctx, tree, filepath.Join(stage.Dir, imageFile), "modules "+version+" "+k.SHA256); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Join(stage.Dir, imageFile), 0o444); err != nil {
		return err
	}
	return os.RemoveAll(scratch)
}

// copyModules copies a modules directory without what only builders of modules use:
// links to headers, and files with debug symbols.
func copyModules(ctx context.Context, from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case !d.Type().IsRegular() || strings.HasSuffix(path, ".ko.debug"):
			return nil
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}

// depmod writes the indexes that modprobe reads where the package left that to the
// target, as Debian's do.
func depmod(ctx context.Context, base, tree, version string) error {
	for _, f := range []string{"modules.dep", "modules.dep.bin"} {
		if _, err := os.Stat(filepath.Join(tree, f)); err != nil {
			return host.Run(ctx, host.Command{Path: "depmod", Args: []string{"-b", base, version}})
		}
	}
	return nil
}

func planIn(tree string) ([]ModuleLoad, error) {
	dep, err := os.Open(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return nil, err
	}
	defer dep.Close()
	builtin, err := os.Open(filepath.Join(tree, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	defer builtin.Close()
	ix, err := parseModules(dep, builtin)
	if err != nil {
		return nil, err
	}
	return ix.plan(drivers)
}

// List returns the kernels below the roots, sorted by name. Where two roots have one
// name, the earlier root's counts. A root that does not exist is empty.
func List(roots ...string) ([]Kernel, error) {
	dirs, err := kernels.List(roots...)
	if err != nil {
		return nil, err
	}
	out := make([]Kernel, len(dirs))
	for i, dir := range dirs {
		if out[i], err = load(dir); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Get returns the kernel of that name from the first root that has it. errs.NotFound if
// none has.
func Get(name string, roots ...string) (Kernel, error) {
	dir, err := kernels.Find(name, roots...)
	if err != nil {
		return Kernel{}, err
	}
	return load(dir)
}

// Remove deletes the kernel of that name from root. errs.NotFound if it is not there.
func Remove(root, name string) error { return kernels.Remove(root, name) }

func load(dir string) (Kernel, error) {
	var k Kernel
	_, err := kernels.Load(dir, &k)
	return k.at(dir), err
}

// at fills in what the place of a kernel tells.
func (k Kernel) at(dir string) Kernel {
	k.Name, k.Dir, k.Vmlinux = filepath.Base(dir), dir, filepath.Join(dir, vmlinuxFile)
	if k.Modules {
		k.ModulesCpio, k.ModulesImage = filepath.Join(dir, cpioFile), filepath.Join(dir, imageFile)
	}
	return k
}
