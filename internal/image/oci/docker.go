package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/errs"
)

// dockerImage is an image in the manifest.json of `docker save`.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// docker reads a Docker archive.
func docker(in Files, c Choice) (*Source, error) {
	platform, err := c.platform()
	if err != nil {
		return nil, err
	}
	b, err := document(in, "manifest.json", "")
	if err != nil {
		return nil, err
	}
	var images []dockerImage
	if err := json.Unmarshal(b, &images); err != nil {
		return nil, refuse("its manifest.json is damaged: %v", err)
	}
	image, err := chooseDocker(images, c.Ref)
	if err != nil {
		return nil, err
	}
	b, err = document(in, image.Config, "")
	if err != nil {
		return nil, err
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(b))
	if err != nil {
		return nil, refuse("its configuration is damaged: %v", err)
	}
	s := &Source{Kind: Docker}
	if s.Config, err = configOf(config, len(image.Layers), platform); err != nil {
		return nil, err
	}
	if len(image.RepoTags) > 0 {
		s.Name = image.RepoTags[0]
	}
	for i, name := range image.Layers {
		r, size, err := in.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, refuse("it is incomplete: the layer %q is not in it", name)
		}
		if err != nil {
			return nil, err
		}
		r.Close()
		s.Layers = append(s.Layers, Layer{Name: short(config.RootFS.DiffIDs[i]), Size: size, DiffID: config.RootFS.DiffIDs[i].Hex,
			Open: func(context.Context) (io.ReadCloser, error) {
				r, _, err := in.Open(name)
				return r, err
			}})
	}
	return s, nil
}

func chooseDocker(images []dockerImage, ref string) (dockerImage, error) {
	var names []string
	var found []dockerImage
	for _, i := range images {
		names = append(names, i.RepoTags...)
		if ref == "" || slices.ContainsFunc(i.RepoTags, func(tag string) bool { return tag == ref || strings.HasSuffix(tag, ":"+ref) }) {
			found = append(found, i)
		}
	}
	switch {
	case len(images) == 0:
		return dockerImage{}, refuse("it holds no image")
	case len(found) == 0:
		return dockerImage{}, errs.New(errs.NotFound, "it holds no image %q, only %s", ref, list(names)).Try("choose one of these with --ref")
	case len(found) > 1:
		return dockerImage{}, errs.New(errs.Invalid, "it holds %d images: %s", len(found), list(names)).Try("choose one with --ref")
	}
	return found[0], nil
}
