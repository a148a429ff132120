package daemon

import (
	"context"

	"banger/api"
	"banger/internal/image"
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
		Name: i.Name, Names: append([]string{}, i.Names...), Title: i.Title(), Digest: i.Digest, ReadOnly: i.ReadOnly,
		Distribution: i.Distribution, Release: i.Release, Init: i.Init, VirtualBytes: i.VirtualBytes,
		AllocatedBytes: i.AllocatedBytes, SHA256: i.SHA256, ManifestHash: i.ManifestHash, Source: i.Source, Script: i.Script,
		Path: i.Path, BuiltAt: i.BuiltAt, UsedBy: []string{},
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
	return l.images.Remove(reference, func(i image.Image, remove func() error) error {
		return l.vms.Unused(ctx, "image "+i.Title(), uses(i), remove)
	})
}

// PruneImages removes the images that no name means and no VM uses. With dry it only lists
// them.
func (l *library) PruneImages(ctx context.Context, dry bool) ([]api.Image, error) {
	all, err := l.Images(ctx)
	if err != nil {
		return nil, err
	}
	pruned := []api.Image{}
	for _, i := range all {
		if len(i.Names) > 0 || len(i.UsedBy) > 0 || i.ReadOnly {
			continue
		}
		if !dry {
			if err := l.RemoveImage(ctx, i.Digest); err != nil {
				return pruned, err
			}
		}
		pruned = append(pruned, i)
	}
	return pruned, nil
}
