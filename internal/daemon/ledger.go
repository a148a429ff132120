package daemon

import (
	"context"
	"os"
	"path/filepath"

	"banger/api"
	"banger/internal/image/shelf"
)

// DiskUses is the ledger of the host's space: each image and kernel once, and each VM with
// what it has for itself.
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
		bytes, err := allocatedIn(k.Path)
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
	for _, v := range vms {
		u := l.vms.DiskUsage(v)
		use := api.DiskUse{Kind: "vm", Name: v.Name, Driver: v.Disk.Driver, ExclusiveBytes: u.AllocatedBytes}
		if u.ChangedBytes >= 0 { // who knows what has changed shares the rest
			for b := &v.Base; b != nil; b = b.On {
				use.SharedBytes += allocated[b.Path]
			}
		}
		if freed := l.vms.Freed(ctx, v); freed >= 0 {
			use.FreedBytes = &freed
		}
		uses = append(uses, use)
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

// allocatedIn adds up what the files in a directory take on disk.
func allocatedIn(dir string) (sum int64, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		bytes, err := shelf.Allocated(filepath.Join(dir, e.Name()))
		if err != nil {
			return 0, err
		}
		sum += bytes
	}
	return sum, err
}
