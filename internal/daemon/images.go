package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/image"
	"banger/internal/image/apt"
	"banger/internal/op"
	"banger/internal/vm"
)

// uses tells whether a VM's disk reads from the image's file.
func uses(i image.Image) func(vm.VM) bool {
	return func(v vm.VM) bool { return v.Base.ReadsFrom(i.Dir) }
}

func (l *library) Images(ctx context.Context) ([]api.Image, error) {
	all, err := l.images.List()
	if err != nil {
		return nil, err
	}
	vms, err := l.vms.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]api.Image, 0, len(all))
	for _, i := range all {
		out = append(out, showImage(i, vms))
	}
	return out, nil
}

// showImage says what there is to know of an image but for its packages, which are many.
func showImage(i image.Image, vms []vm.VM) api.Image {
	out := api.Image{
		Name: i.Name, Names: append([]string{}, i.Names...), Title: i.Title(), Digest: i.Digest, ReadOnly: i.ReadOnly, Stale: i.Stale,
		Distribution: i.Distribution, Release: i.Release, Init: i.Init, VirtualBytes: i.VirtualBytes,
		AllocatedBytes: i.AllocatedBytes, SHA256: i.SHA256, ManifestHash: i.ManifestHash, ManifestPath: i.ManifestPath, Source: i.Source, Script: i.Script,
		Path: i.Path, BuiltAt: i.BuiltAt, UsedBy: []string{},
	}
	if i.Damage != nil {
		out.Damage, out.Mend = i.Damage.Error(), errs.HintOf(i.Damage)
	}
	if i.Stale != "" {
		out.Rebuild = i.RebuildCommand()
	}
	for _, p := range i.Phases {
		out.Phases = append(out.Phases, api.ImagePhase(p))
	}
	if i.Base != nil {
		out.Base = &api.ImageBase{Name: i.Base.Name, Digest: i.Base.Digest}
	}
	if i.Config != nil {
		c := api.ImageConfig(*i.Config)
		out.Config = &c
	}
	for _, v := range vms {
		if uses(i)(v) {
			out.UsedBy = append(out.UsedBy, v.Name)
		}
	}
	return out
}

func (l *library) ImageInfo(ctx context.Context, reference string) (api.Image, error) {
	i, err := l.images.Get(reference)
	if err != nil {
		return api.Image{}, err
	}
	vms, err := l.vms.List(ctx)
	if err != nil {
		return api.Image{}, err
	}
	out := showImage(i, vms)
	for _, p := range i.Packages {
		out.Packages = append(out.Packages, api.Package(p))
	}
	return out, nil
}

func (l *library) TagImage(_ context.Context, reference, name string) error {
	return l.images.Tag(reference, name)
}

func (l *library) RemoveImage(ctx context.Context, reference string) error {
	return l.images.Remove(reference, func(i image.Image, remove func() error) error { return l.removeImage(ctx, i, remove) })
}

// removeImage removes an image and the templates of it, or nothing where it has to stay.
func (l *library) removeImage(ctx context.Context, i image.Image, remove func() error) error {
	if i.ReadOnly {
		return remove() // which refuses
	}
	if err := l.dropTemplates(ctx, uses(i), func(base disk.Base, _ string) bool { return base.ReadsFrom(i.Dir) }); err != nil {
		return err
	}
	return l.vms.Unused(ctx, "image "+i.Title(), uses(i), remove)
}

// dropTemplates removes the templates of what is about to be removed, unless a VM uses that: then
// nothing will be.
func (l *library) dropTemplates(ctx context.Context, uses func(vm.VM) bool, of func(base disk.Base, kernel string) bool) error {
	vms, err := l.vms.List(ctx)
	if err != nil || slices.ContainsFunc(vms, uses) {
		return err
	}
	return l.vms.DropTemplates(ctx, of)
}

// BuildImage builds an image from its manifest: a file of the host's or, without a path, the
// one that banger carries for its name.
func (l *library) BuildImage(ctx context.Context, o *op.Operation, req api.BuildImage) error {
	l.making.RLock()
	defer l.making.RUnlock()
	var m image.Manifest
	var err error
	if req.Path == "" {
		m, err = image.BuiltIn(image.BuiltInName(req.Name))
	} else {
		m, err = image.ReadManifest(req.Path)
	}
	if err != nil {
		return err
	}
	if req.SizeBytes != nil {
		if m, err = m.Sized(*req.SizeBytes); err != nil {
			return err
		}
	}
	_, err = l.images.Build(ctx, req.Name, m, image.BuildOptions{Etc: apt.Etc, Refresh: req.Refresh, Workshop: l.workshop}, o.Stage)
	return err
}

// CheckImage tells which packages of an image the mirrors have in newer versions.
func (l *library) CheckImage(ctx context.Context, reference string) ([]api.NewerPackage, error) {
	l.making.RLock()
	defer l.making.RUnlock()
	found, err := l.images.Check(ctx, reference, apt.Etc, func(string, int64, int64) {})
	out := make([]api.NewerPackage, len(found))
	for n, f := range found {
		out[n] = api.NewerPackage(f)
	}
	return out, err
}

// CommitVM keeps the disk of a VM as an image.
func (l *library) CommitVM(ctx context.Context, o *op.Operation, id string, req api.CommitVM) (err error) {
	l.making.RLock()
	defer l.making.RUnlock()
	d, err := l.images.Begin(req.Name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Discard()) }()
	path := filepath.Join(d.Dir, "rootfs")
	v, err := l.vms.Flatten(ctx, o, id, path, req.Stop)
	if err != nil {
		return err
	}
	o.Stage("cleaning", 0, 0)
	packages, err := image.Tidy(ctx, path, req.KeepResidue)
	if err != nil {
		return errs.New(errs.KindOf(err), "the disk of VM %s can't become an image", v.Name).Because(err)
	}
	i, err := l.madeOf(v)
	if err != nil {
		return err
	}
	i.Packages, i.Script = packages, req.Script
	_, err = d.Commit(ctx, path, i, o.Stage)
	return err
}

// madeOf describes an image made of the VM's disk, as far as the VM's own image tells.
func (l *library) madeOf(v vm.VM) (image.Image, error) {
	all, err := l.images.List()
	if err != nil {
		return image.Image{}, err
	}
	for _, i := range all {
		if i.Damage == nil && uses(i)(v) {
			return image.Image{Base: &image.Origin{Name: i.Name, Digest: i.Digest},
				Distribution: i.Distribution, Release: i.Release, Init: i.Init, Config: i.Config}, nil
		}
	}
	return image.Image{}, nil
}

// PruneImages removes the images that no name means and no VM uses and, with all, what
// builds and pulls have kept. With dry it only lists them.
func (l *library) PruneImages(ctx context.Context, all, dry bool) (api.PrunedImages, error) {
	pruned := api.PrunedImages{Images: []api.Image{}}
	if all && l.making.TryLock() { // otherwise it may be in use
		defer l.making.Unlock()
		var err error
		if pruned.PhaseBytes, err = l.images.ForgetPhases(dry); err != nil {
			return pruned, err
		}
		if pruned.PullBytes, err = l.puller.Forget(dry); err != nil {
			return pruned, err
		}
	}
	images, err := l.Images(ctx)
	if err != nil {
		return pruned, err
	}
	for _, i := range images {
		if len(i.Names) > 0 || len(i.UsedBy) > 0 || i.ReadOnly {
			continue
		}
		if !dry {
			stays := false
			err := l.images.Remove(i.Digest, func(now image.Image, remove func() error) error {
				if stays = len(now.Names) > 0; stays { // named meanwhile
					return nil
				}
				return l.removeImage(ctx, now, remove)
			})
			if k := errs.KindOf(err); stays || err != nil && (k == errs.Conflict || k == errs.NotFound) { // or in use, or gone
				continue
			}
			if err != nil {
				return pruned, err
			}
		}
		pruned.Images = append(pruned.Images, i)
	}
	return pruned, nil
}
