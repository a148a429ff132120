package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/docker/go-units"

	"banger/api"
	"banger/internal/errs"
	"banger/internal/image"
	"banger/internal/image/ext4"
	"banger/internal/image/oci"
	"banger/internal/image/registry"
	"banger/internal/op"
)

// ImportImage makes an image of what lies at the request's path, or of body if there is one.
func (l *library) ImportImage(ctx context.Context, o *op.Operation, req api.ImportImage, body io.Reader) error {
	choice := oci.Choice{Ref: req.Ref, Platform: req.Platform}
	bytes, err := imageBytes(req.SizeBytes)
	if err != nil {
		return err
	}
	in := image.Import{Name: req.Name, Bytes: bytes}
	switch {
	case body != nil:
		in.Source = "standard input"
		in.Open = func(_ context.Context, scratch string) (*oci.Source, error) {
			return chosen(choice)(oci.OpenStream(body, "what was given", scratch, choice))
		}
	case !filepath.IsAbs(req.Path):
		return errs.New(errs.Invalid, "%q is not an absolute path", req.Path)
	default:
		in.Source = req.Path
		in.Open = func(_ context.Context, scratch string) (*oci.Source, error) {
			return chosen(choice)(oci.Open(req.Path, scratch, choice))
		}
	}
	l.making.RLock()
	defer l.making.RUnlock()
	_, err = l.images.Import(ctx, in, o.Stage)
	return err
}

// chosen refuses a choice where there is none.
func chosen(c oci.Choice) func(*oci.Source, error) (*oci.Source, error) {
	return func(s *oci.Source, err error) (*oci.Source, error) {
		if err != nil || c == (oci.Choice{}) || s.Kind != oci.Tar && s.Kind != oci.Ext4 {
			return s, err
		}
		err = errs.New(errs.Invalid, "it is no container image: there is no --ref or --platform to choose")
		return nil, errors.Join(err, s.Close())
	}
}

func imageBytes(asked *int64) (int64, error) {
	if asked == nil {
		return 0, nil
	}
	if *asked <= 0 {
		return 0, errs.New(errs.Invalid, "an image can't have %d bytes", *asked)
	}
	if *asked > ext4.MaxBytes {
		return 0, errs.New(errs.Invalid, "an image has at most %s", units.BytesSize(ext4.MaxBytes))
	}
	return *asked, nil
}

// ExportImage finds an image and returns what writes it.
func (l *library) ExportImage(reference, format string) (func(context.Context, io.Writer) error, error) {
	i, err := l.images.Get(reference)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, w io.Writer) error {
		l.making.RLock()
		defer l.making.RUnlock()
		return l.images.Export(ctx, i, format, w)
	}, nil
}

// PullImage makes an image of one in a registry. Who pulls the same at the same time waits for
// the one pull.
func (l *library) PullImage(ctx context.Context, o *op.Operation, req api.PullImage) error {
	ref, err := registry.ParseReference(req.Reference)
	if err != nil {
		return err
	}
	bytes, err := imageBytes(req.SizeBytes)
	if err != nil {
		return err
	}
	in := image.Import{Name: cmp.Or(req.Name, registry.ShortName(ref)), Source: ref.Name(), Bytes: bytes}
	if in.Name, err = image.ParseName(in.Name); err != nil {
		return err
	}
	o.Made(in.Name)
	l.making.RLock()
	defer l.making.RUnlock()
	key := fmt.Sprintf("pull %s %s %s %d", ref.Name(), in.Name, req.Platform, bytes)
	_, err = l.images.Share(ctx, key, o.Stage, func(ctx context.Context, progress image.Progress) (image.Image, error) {
		in.Open = func(ctx context.Context, _ string) (*oci.Source, error) {
			return l.puller.Pull(ctx, ref, oci.Choice{Platform: req.Platform}, credentialsOf(req.Credentials), progress)
		}
		return l.images.Import(ctx, in, progress)
	})
	return err
}

func credentialsOf(c *api.RegistryCredentials) *registry.Credentials {
	if c == nil {
		return nil
	}
	return &registry.Credentials{Username: c.Username, Password: c.Password, Auth: c.Auth, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
}
