// Package image owns root filesystems: the manifests that describe them, how they are
// built from Debian's packages without mounting anything, and where they are kept: a
// [Store] of the state directory's, and the shelf of a runtime bundle. It knows nothing of
// virtual machines; an image is never changed once it is there.
package image

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/errs"
	"banger/internal/image/shelf"
)

var images = shelf.Shelf{Kind: "image", Record: "manifest.json"}

// Image is a root filesystem that machines start with. The file is read-only. What JSON
// shows of it is its manifest.json; the rest follows from where that lies.
type Image struct {
	Name     string   `json:"name"` // that it was made under, or by which it was asked for
	Names    []string `json:"-"`    // those that mean it now, sorted
	Digest   string   `json:"-"`    // sha256:… of its manifest.json, which never changes
	ReadOnly bool     `json:"-"`    // it is part of a runtime bundle
	Damage   error    `json:"-"`    // why it can't be used, or nil; then little else is known
	Stale    string   `json:"-"`    // why it should be built anew, or ""
	Dir      string   `json:"-"`    // it has this directory for itself
	Path     string   `json:"-"`    // of the ext4 filesystem, absolute

	SHA256         string    `json:"sha256"` // of that file
	VirtualBytes   int64     `json:"virtual_bytes"`
	AllocatedBytes int64     `json:"allocated_bytes"`
	ManifestHash   string    `json:"manifest_hash"`           // of the manifest it was built from
	ManifestPath   string    `json:"manifest_path,omitempty"` // that manifest's file; "" where banger carries it
	Phases         []Phase   `json:"phases,omitempty"`
	Packages       []Package `json:"packages"`
	Distribution   string    `json:"distribution"`
	Release        string    `json:"release"`
	Init           string    `json:"init"`             // path in the image, "" if it has none
	Source         string    `json:"source,omitempty"` // where it is from if it was not built, for people
	Base           *Origin   `json:"base,omitempty"`   // the image it was made of
	Script         string    `json:"script,omitempty"` // SHA-256 of what was run in Base to make it
	Config         *Config   `json:"config,omitempty"` // of a container image
	BuiltAt        time.Time `json:"built_at"`
}

// Phase is a step of a build. Equal hashes mean equal input to it and to all before it.
type Phase struct {
	Name string `json:"name"`
	Hash string `json:"hash"`
}

// Origin is an image as it was called when another was made of it.
type Origin struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}

// Config is what a container image says of the program in it, with the meaning that the
// OCI's image specification gives it.
type Config struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"` // K=V
	User       string   `json:"user,omitempty"`
	WorkDir    string   `json:"workdir,omitempty"`
}

// Package is a Debian package in an image.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
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

// Title is how a person refers to the image: by a name that means it, or else by its digest.
func (i Image) Title() string {
	if slices.Contains(i.Names, i.Name) {
		return i.Name
	}
	digest := i.Digest[:min(len(i.Digest), len(digestIs)+shortDigest)]
	if repository, _ := splitTag(i.Name); repository != "" {
		return repository + "@" + digest
	}
	return digest
}

// load reads the image that lies in dir, which has its name.
func load(dir string) (Image, error) {
	i, err := loadUnnamed(dir)
	i.Name = filepath.Base(dir)
	i.Names = []string{i.Name}
	return i, err
}

// loadUnnamed reads the image that lies in dir; what it is called is written elsewhere.
func loadUnnamed(dir string) (Image, error) {
	var i Image
	record, err := images.Load(dir, &i)
	if err == nil && strings.Trim(i.SHA256, "0123456789abcdef") != "" { // it is part of a file's name
		err = errs.New(errs.Internal, "the record of image %s is damaged", filepath.Base(dir)).
			Because(fmt.Errorf("%q is no checksum", i.SHA256)).Try("remove %s and make it again", dir)
	}
	if err != nil {
		i = Image{Damage: err}
		if len(record) == 0 { // it is called by something of its own all the same
			record = []byte(dir)
		}
	}
	sum := sha256.Sum256(record)
	i.Digest = digestIs + hex.EncodeToString(sum[:])
	i.Dir, i.Path = dir, filepath.Join(dir, rootfsFile(i.SHA256))
	return i, err
}

// rootfsFile names a filesystem by its content, so that the overlay of a machine, which
// names its base, never lies on another: when an image is built anew, the old path is gone.
func rootfsFile(sha256 string) string {
	return "rootfs-" + sha256[:min(16, len(sha256))] + ".ext4"
}
