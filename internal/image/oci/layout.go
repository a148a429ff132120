package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/errs"
)

// Files are the files of a layout or an archive.
type Files interface {
	// Open opens a regular file, whose size it tells. fs.ErrNotExist if it is not there.
	Open(name string) (io.ReadCloser, int64, error)
}

// Choice picks one of several images.
type Choice struct {
	Ref      string // its name or tag; "" where there is but one
	Platform string // os/architecture or os/architecture/variant; "" is linux/amd64
}

func (c Choice) platform() (v1.Platform, error) {
	if c.Platform == "" {
		return v1.Platform{OS: "linux", Architecture: "amd64"}, nil
	}
	p, err := v1.ParsePlatform(c.Platform)
	if err != nil || p.OS == "" || p.Architecture == "" {
		return v1.Platform{}, errs.New(errs.Invalid, "%q is no platform", c.Platform).Try("write it like linux/amd64")
	}
	return *p, nil
}

const (
	refAnnotation        = "org.opencontainers.image.ref.name"
	containerdAnnotation = "io.containerd.image.name"
	attestation          = "vnd.docker.reference.type"

	maxIndexDepth = 8
	maxIndexes    = 64
)

// OpenFiles opens an OCI layout whose files come from anywhere.
func OpenFiles(in Files, c Choice) (*Source, error) { return layout(in, c) }

// layout reads an OCI layout.
func layout(in Files, c Choice) (*Source, error) {
	platform, err := c.platform()
	if err != nil {
		return nil, err
	}
	b, err := document(in, "index.json", "")
	if err != nil {
		return nil, err
	}
	p := picker{files: in, choice: c, platform: platform, seen: map[string]bool{}}
	if err := p.index(b, c.Ref == "", 0); err != nil {
		return nil, err
	}
	d, err := p.picked()
	if err != nil {
		return nil, err
	}
	manifest, err := document(in, blobName(d.Digest), d.Digest.Hex)
	if err != nil {
		return nil, err
	}
	s, err := fromManifest(manifest, platform, func(d v1.Descriptor) ([]byte, error) {
		return document(in, blobName(d.Digest), d.Digest.Hex)
	}, func(d v1.Descriptor) func(context.Context) (io.ReadCloser, error) {
		return func(context.Context) (io.ReadCloser, error) {
			r, size, err := openBlob(in, d.Digest)
			if err == nil && size != d.Size {
				r.Close()
				return nil, refuse("the layer %s has %d bytes, not %d as its manifest says", short(d.Digest), size, d.Size)
			}
			return r, err
		}
	})
	if err != nil {
		return nil, err
	}
	s.Kind, s.Digest = Layout, d.Digest.String()
	if s.Name = d.Annotations[containerdAnnotation]; s.Name == "" {
		s.Name = d.Annotations[refAnnotation]
	}
	return s, nil
}

// picker looks for one image in an index and the indexes in it.
type picker struct {
	files    Files
	choice   Choice
	platform v1.Platform
	seen     map[string]bool // digests of indexes
	found    []v1.Descriptor
	others   []string // what else there is: names and platforms
}

func (p *picker) index(b []byte, named bool, depth int) error {
	if depth > maxIndexDepth || len(p.seen) > maxIndexes {
		return refuse("its indexes refer to one another without end")
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(b))
	if err != nil {
		return refuse("its index is damaged: %v", err)
	}
	for _, d := range index.Manifests {
		if d.Digest.Algorithm != "sha256" {
			return refuse("its digests are of the kind %q; only sha256 is known", d.Digest.Algorithm)
		}
		if d.Annotations[attestation] != "" {
			continue
		}
		named := named || p.named(d)
		switch {
		case !named:
			p.others = append(p.others, d.Annotations[refAnnotation])
		case d.MediaType == types.OCIImageIndex || d.MediaType == types.DockerManifestList:
			if p.seen[d.Digest.Hex] {
				return refuse("its index %s contains itself", short(d.Digest))
			}
			p.seen[d.Digest.Hex] = true
			b, err := document(p.files, blobName(d.Digest), d.Digest.Hex)
			if err != nil {
				return err
			}
			if err := p.index(b, true, depth+1); err != nil {
				return err
			}
		case d.Platform != nil && !d.Platform.Satisfies(p.platform):
			p.others = append(p.others, d.Platform.String())
		case !slices.ContainsFunc(p.found, func(f v1.Descriptor) bool { return f.Digest == d.Digest }):
			p.found = append(p.found, d)
		}
	}
	return nil
}

func (p *picker) named(d v1.Descriptor) bool {
	for _, name := range []string{d.Annotations[refAnnotation], d.Annotations[containerdAnnotation], d.Digest.String()} {
		if name == p.choice.Ref || strings.HasSuffix(name, ":"+p.choice.Ref) {
			return true
		}
	}
	return false
}

func (p *picker) picked() (v1.Descriptor, error) {
	if len(p.found) > 1 { // one for every machine of the architecture, beside some for the newer
		plain := func(d v1.Descriptor) bool { return d.Platform == nil || d.Platform.Variant == "" }
		if i := slices.IndexFunc(p.found, plain); i >= 0 && !slices.ContainsFunc(p.found[i+1:], plain) {
			return p.found[i], nil
		}
	}
	switch {
	case len(p.found) == 1:
		return p.found[0], nil
	case len(p.found) > 1:
		var names []string
		for _, d := range p.found {
			names = append(names, firstOf(d.Annotations[refAnnotation], d.Digest.String()))
		}
		return v1.Descriptor{}, refuse("it holds %d images: %s", len(names), list(names)).(*errs.Error).Try("choose one with --ref")
	case len(p.others) > 0:
		return v1.Descriptor{}, errs.New(errs.NotFound, "it holds no image %q for %s, only %s", p.choice.Ref, p.platform, list(p.others)).
			Try("choose one of these with --ref or --platform")
	}
	return v1.Descriptor{}, refuse("it holds no image")
}

// list names a few things.
func list(names []string) string {
	const few = 10
	if len(names) > few {
		return fmt.Sprintf("%q and %d more", names[:few], len(names)-few)
	}
	return fmt.Sprintf("%q", names)
}

func firstOf(names ...string) string {
	for _, n := range names {
		if n != "" {
			return n
		}
	}
	return ""
}

// fromManifest reads an image's manifest and, by config, its configuration.
func fromManifest(b []byte, p v1.Platform, config func(v1.Descriptor) ([]byte, error),
	open func(v1.Descriptor) func(context.Context) (io.ReadCloser, error)) (*Source, error) {
	m, err := v1.ParseManifest(bytes.NewReader(b))
	if err != nil {
		return nil, refuse("its manifest is damaged: %v", err)
	}
	if m.Config.MediaType != types.OCIConfigJSON && m.Config.MediaType != types.DockerConfigJSON {
		return nil, refuse("it is no container image but an artefact of the type %q", m.Config.MediaType)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if d.Digest.Algorithm != "sha256" || d.Size < 0 {
			return nil, refuse("its manifest is damaged: %q of %d bytes is no content", d.Digest, d.Size)
		}
	}
	c, err := config(m.Config)
	if err != nil {
		return nil, err
	}
	parsed, err := v1.ParseConfigFile(bytes.NewReader(c))
	if err != nil {
		return nil, refuse("its configuration is damaged: %v", err)
	}
	s := &Source{}
	if s.Config, err = configOf(parsed, len(m.Layers), p); err != nil {
		return nil, err
	}
	for i, d := range m.Layers {
		s.Layers = append(s.Layers, Layer{Name: short(d.Digest), Size: d.Size, Digest: d.Digest.Hex, DiffID: parsed.RootFS.DiffIDs[i].Hex, Open: open(d)})
	}
	return s, nil
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// short is a digest as people write it.
func short(h v1.Hash) string { return h.Hex[:min(12, len(h.Hex))] }

func openBlob(in Files, h v1.Hash) (io.ReadCloser, int64, error) {
	r, size, err := in.Open(blobName(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, refuse("it is incomplete: the blob %s is not in it", h)
	}
	return r, size, err
}

// document reads a small file of a layout or archive.
func document(in Files, name, digest string) ([]byte, error) {
	r, _, err := in.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse("it is incomplete: %s is not in it", name)
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readDocument(r, name, digest)
}
