// Package image owns root filesystems: the manifests that describe them, how they are
// built from Debian's packages without mounting anything, and the shelf they are kept on.
// It knows nothing of virtual machines; an image is never changed once it is there.
package image

import (
	"path/filepath"
	"time"

	"banger/internal/image/shelf"
)

var images = shelf.Shelf{Kind: "image", Record: "manifest.json"}

// Image is a root filesystem that machines start with. The file is read-only.
type Image struct {
	Name           string    `json:"name"` // a DNS label
	Dir            string    `json:"-"`
	Path           string    `json:"-"`      // of the ext4 filesystem, absolute
	SHA256         string    `json:"sha256"` // of that file
	VirtualBytes   int64     `json:"virtual_bytes"`
	AllocatedBytes int64     `json:"allocated_bytes"`
	ManifestHash   string    `json:"manifest_hash"` // of the manifest it was built from
	Packages       []Package `json:"packages"`
	Distribution   string    `json:"distribution"`
	Release        string    `json:"release"`
	Init           string    `json:"init"` // path in the image, "" if it has none
	BuiltAt        time.Time `json:"built_at"`
}

// Package is a Debian package in an image.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// List returns the images below the roots, sorted by name. Where two roots have one name,
// the earlier root's counts. A root that does not exist is empty.
func List(roots ...string) ([]Image, error) {
	dirs, err := images.List(roots...)
	if err != nil {
		return nil, err
	}
	out := make([]Image, len(dirs))
	for i, dir := range dirs {
		if out[i], err = load(dir); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Get returns the image of that name from the first root that has it. errs.NotFound if
// none has.
func Get(name string, roots ...string) (Image, error) {
	dir, err := images.Find(name, roots...)
	if err != nil {
		return Image{}, err
	}
	return load(dir)
}

// Remove deletes the image of that name from root. errs.NotFound if it is not there.
func Remove(root, name string) error { return images.Remove(root, name) }

func load(dir string) (Image, error) {
	var i Image
	err := images.Load(dir, &i)
	return i.at(dir), err
}

// at fills in what the place of an image tells.
func (i Image) at(dir string) Image {
	i.Name, i.Dir, i.Path = filepath.Base(dir), dir, filepath.Join(dir, rootfsFile(i.SHA256))
	return i
}

// rootfsFile names a filesystem by its content, so that the overlay of a machine, which
// names its base, never lies on another: when an image is built anew, the old path is gone.
func rootfsFile(sha256 string) string {
	return "rootfs-" + sha256[:min(16, len(sha256))] + ".ext4"
}
