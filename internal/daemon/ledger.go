package daemon

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"banger/api"
	"banger/internal/image/shelf"
	"banger/internal/vm"
)

// DiskUses is the ledger of the host's space: each image, kernel and saved machine once, each VM with
// what it has for itself, and the caches.
func (l *library) DiskUses(ctx context.Context) ([]api.DiskUse, error) {
	images, err := l.Images(ctx)
	if err != nil {
		return nil, err
	}
	kernels, err := l.Kernels(ctx)
	if err != nil {
		return nil, err
	}
	vms, err := l.vms.List(ctx)
	if err != nil {
		return nil, err
	}
	uses, allocated := []api.DiskUse{}, map[string]int64{}
	for _, i := range images {
		allocated[i.Path] = i.AllocatedBytes
		uses = append(uses, artefact("image", i.Title, i.AllocatedBytes, i.UsedBy))
	}
	for _, k := range kernels {
		bytes, err := allocatedBelow(k.Path)
		if err != nil {
			return nil, err
		}
		uses = append(uses, artefact("kernel", k.Name, bytes, k.UsedBy))
	}
	templates, templateUsers, err := l.vms.ListTemplates(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range templates {
		bytes, err := t.Allocated()
		if err != nil {
			return nil, err
		}
		allocated[t.Disk.Path], err = shelf.Allocated(t.Disk.Path)
		if err != nil {
			return nil, err
		}
		uses = append(uses, artefact("template", t.Name, bytes, templateUsers[t.Name]))
	}
	snapshots, snapshotUsers, err := l.vms.ListSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range snapshots {
		bytes, err := t.Allocated()
		if err != nil {
			return nil, err
		}
		uses = append(uses, artefact("snapshot", t.Name, bytes, snapshotUsers[t.Name]))
	}
	for _, v := range vms {
		u := l.vms.DiskUsage(v)
		use := api.DiskUse{Kind: "vm", Name: v.Name, Driver: v.Disk.Driver, ExclusiveBytes: u.AllocatedBytes}
		if u.ChangedBytes >= 0 { // who knows what has changed shares the rest
			for b := &v.Base; b != nil; b = b.On {
				use.SharedBytes += allocated[b.Path]
			}
		}
		if v.State == vm.Suspended { // and what it goes on from
			kept, err := allocatedBelow(filepath.Dir(l.vms.Dirs.Kept(v.ID).Memory))
			if err != nil {
				return nil, err
			}
			use.ExclusiveBytes += kept
		}
		if freed := l.vms.Freed(ctx, v); freed >= 0 {
			use.FreedBytes = &freed
		}
		uses = append(uses, use)
	}
	caches, err := l.caches()
	return append(uses, caches...), err
}

// caches lists what is kept only to be quicker the next time.
func (l *library) caches() (uses []api.DiskUse, err error) {
	builds, err := l.images.ForgetPhases(true)
	if err != nil {
		return nil, err
	}
	pulls, err := l.puller.Forget(true)
	if err != nil {
		return nil, err
	}
	for _, c := range []api.DiskUse{{Name: "builds", ExclusiveBytes: builds}, {Name: "pulls", ExclusiveBytes: pulls}} {
		if c.ExclusiveBytes > 0 {
			c.Kind = "cache"
			uses = append(uses, c)
		}
	}
	return uses, nil
}

// artefact is what several VMs can share: exclusive as long as nobody does.
func artefact(kind, name string, bytes int64, usedBy []string) api.DiskUse {
	if len(usedBy) == 0 {
		return api.DiskUse{Kind: kind, Name: name, ExclusiveBytes: bytes}
	}
	return api.DiskUse{Kind: kind, Name: name, SharedBytes: bytes}
}

// allocatedBelow adds up what a file, or the files of a tree, take on disk, but for what is gone
// meanwhile or can't be looked into.
func allocatedBelow(path string) (sum int64, err error) {
	passed := func(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) }
	err = filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var bytes int64
			bytes, err = shelf.Allocated(path)
			sum += bytes
		}
		if passed(err) {
			return nil
		}
		return err
	})
	return sum, err
}
