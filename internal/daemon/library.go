package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"banger/api"
	"banger/internal/config"
	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/guest/embedded"
	"banger/internal/image"
	"banger/internal/image/registry"
	"banger/internal/kernel"
	"banger/internal/op"
	"banger/internal/runtimedir"
	"banger/internal/vm"
)

// library is the images and kernels that VMs can use: those of the runtime bundle, which
// is read-only but for its builds, and those that live in the state directory.
type library struct {
	state    string
	images   *image.Store
	puller   *registry.Puller
	config   config.Runtime
	banger   string // this daemon's version
	workshop workshop
	resolve  func() (runtimedir.Bundle, error)
	target   func() (runtimedir.Bundle, error) // where a bundle would be built
	vms      *vm.Manager                       // who uses what
	building op.Locks
	making   sync.RWMutex // held for reading while an image or a kernel is being made

	initramfs struct {
		sync.Mutex
		last initramfs
	}
}

func newLibrary(state string, config config.Runtime, mirrors map[string][]string, version string, resolve, target func() (runtimedir.Bundle, error)) *library {
	l := &library{state: state, config: config, banger: version, resolve: resolve, target: target}
	l.images = image.NewStore(filepath.Join(state, "images"), func() (string, error) {
		b, err := resolve()
		return b.ImagesDir(), err
	})
	l.puller = &registry.Puller{Cache: filepath.Join(state, "cache", "blobs"), Mirrors: mirrors}
	return l
}

func (l *library) ownKernels() string { return filepath.Join(l.state, "kernels") }

func (l *library) initramfsCache() string { return filepath.Join(l.state, "cache", "initramfs") }

// kernelRoots returns the directories to look for kernels in, the state's first, and why
// there is no bundle among them, which is told only where something was not found.
func (l *library) kernelRoots() (roots []string, noBundle error) {
	b, err := l.resolve()
	if err != nil {
		return []string{l.ownKernels()}, err
	}
	return []string{l.ownKernels(), b.KernelsDir()}, nil
}

// missing turns "not found" into "no bundle" where that is why.
func missing(err, noBundle error) error {
	if err != nil && noBundle != nil && errs.KindOf(err) == errs.NotFound {
		return noBundle
	}
	return err
}

// Image implements vm.Images.
func (l *library) Image(reference string) (image.Image, error) { return l.images.Get(reference) }

// Kernel implements vm.Kernels.
func (l *library) Kernel(name string) (kernel.Kernel, error) {
	roots, noBundle := l.kernelRoots()
	k, err := kernel.Get(name, roots...)
	return k, missing(err, noBundle)
}

// Initramfs implements vm.Kernels.
func (l *library) Initramfs(ctx context.Context, k kernel.Kernel) (string, error) {
	made := initramfs{of: k}
	if info, err := os.Stat(k.ModulesCpio); err == nil {
		made.modules = info
	}
	l.initramfs.Lock()
	defer l.initramfs.Unlock()
	if last := l.initramfs.last; last.isFor(made) {
		return last.path, nil
	}
	agent, err := embedded.Agent()
	if err != nil {
		return "", err
	}
	if made.path, err = kernel.Initramfs(ctx, k, agent, l.initramfsCache()); err == nil {
		l.initramfs.last = made
	}
	return made.path, err
}

// initramfs is one that has been made. To find it again by its name takes a digest of all that
// is in it, some ten megabytes, at each start.
type initramfs struct {
	of      kernel.Kernel
	modules os.FileInfo
	path    string
}

// isFor tells whether i, which is there, is what other would be.
func (i initramfs) isFor(other initramfs) bool {
	if i.path == "" || i.of.Dir != other.of.Dir || i.of.ModulesCpio != other.of.ModulesCpio {
		return false
	}
	same := i.modules == nil && other.modules == nil
	if i.modules != nil && other.modules != nil {
		same = os.SameFile(i.modules, other.modules) && i.modules.ModTime().Equal(other.modules.ModTime())
	}
	_, err := os.Stat(i.path)
	return same && err == nil
}

func (l *library) Kernels(ctx context.Context) ([]api.Kernel, error) {
	roots, _ := l.kernelRoots() // without a bundle the list is shorter
	all, err := kernel.List(roots...)
	if err != nil {
		return nil, err
	}
	vms, err := l.vms.List(ctx)
	if err != nil {
		return nil, err
	}
	used := map[string][]string{}
	for _, v := range vms {
		used[v.Spec.Kernel] = append(used[v.Spec.Kernel], v.Name)
	}
	out := make([]api.Kernel, 0, len(all))
	for _, k := range all {
		out = append(out, api.Kernel{
			Name: k.Name, Version: k.Version, Arch: k.Arch, Source: k.Source, Bytes: k.Bytes, SHA256: k.SHA256,
			Modules: k.Modules, Path: k.Dir, CreatedAt: k.CreatedAt, UsedBy: append([]string{}, used[k.Name]...),
		})
	}
	return out, nil
}

func (l *library) ImportKernel(ctx context.Context, o *op.Operation, req api.ImportKernel) error {
	for _, p := range []string{req.Path, req.ModulesDir} {
		if p != "" && !filepath.IsAbs(p) {
			return errs.New(errs.Invalid, "%q is not an absolute path", p)
		}
	}
	if _, err := l.Kernel(req.Name); err == nil { // also in the bundle, which Import does not see
		return errs.New(errs.Conflict, "there is a kernel %s already", req.Name)
	}
	l.making.RLock()
	defer l.making.RUnlock()
	_, err := kernel.Import(ctx, l.ownKernels(), kernel.ImportSpec{Name: req.Name, Image: req.Path, ModulesDir: req.ModulesDir}, o.Stage)
	return err
}

func (l *library) RemoveKernel(ctx context.Context, name string) error {
	k, err := l.Kernel(name)
	if err != nil {
		return err
	}
	uses := func(v vm.VM) bool { return v.Spec.Kernel == name }
	if err := l.dropTemplates(ctx, uses, func(_ disk.Base, kernel string) bool { return kernel == name }); err != nil {
		return err
	}
	return l.vms.Unused(ctx, "kernel "+name, uses,
		func() error { return kernel.Remove(filepath.Dir(k.Dir), name) })
}

// Detail says what the library holds, for the doctor.
func (l *library) detail(ctx context.Context) (string, error) {
	b, err := l.resolve()
	if err != nil {
		return "", err
	}
	images, err := l.Images(ctx)
	if err != nil {
		return "", err
	}
	kernels, err := l.Kernels(ctx)
	if err != nil {
		return "", err
	}
	var names []string
	for _, i := range images {
		names = append(names, i.Title)
	}
	return fmt.Sprintf("%s (%s): %d kernels; images %s", b.Dir, b.Rule, len(kernels), strings.Join(names, ", ")), nil
}
