package daemon

import (
	"context"
	"io"
	"path/filepath"

	"banger/api"
	"banger/internal/errs"
	"banger/internal/image"
	"banger/internal/image/oci"
	"banger/internal/op"
)

// ImportImage makes an image of what lies at the request's path, or of body if there is one.
func (l *library) ImportImage(ctx context.Context, o *op.Operation, req api.ImportImage, body io.Reader) error {
	choice := oci.Choice{Ref: req.Ref, Platform: req.Platform}
	in := image.Import{Name: req.Name}
	if req.SizeBytes != nil {
		if in.Bytes = *req.SizeBytes; in.Bytes <= 0 {
			return errs.New(errs.Invalid, "an image can't have %d bytes", in.Bytes)
		}
	}
	switch {
	case body != nil:
		in.Source = "standard input"
		in.Open = func(_ context.Context, scratch string) (*oci.Source, error) {
			return oci.OpenStream(body, "what was given", scratch, choice)
		}
	case !filepath.IsAbs(req.Path):
		return errs.New(errs.Invalid, "%q is not an absolute path", req.Path)
	default:
		in.Source = req.Path
		in.Open = func(_ context.Context, scratch string) (*oci.Source, error) {
			return oci.Open(req.Path, scratch, choice)
		}
	}
	l.making.RLock()
	defer l.making.RUnlock()
	_, err := l.images.Import(ctx, in, o.Stage)
	return err
}
