package image

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"banger/internal/errs"
	"banger/internal/image/ext4"
	"banger/internal/image/oci"
	"banger/internal/image/shelf"
)

// Export writes an image's files to w: the format "tar" is an archive of the root filesystem,
// "oci" one of a container image.
func (s *Store) Export(ctx context.Context, i Image, format string, w io.Writer) (err error) {
	f, err := os.Open(i.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := ext4.NewReader(f)
	if err == nil {
		err = s.export(ctx, r, i, format, w)
	}
	if err != nil && ctx.Err() == nil {
		return errs.New(errs.KindOf(err), "can't export image %s", i.Title()).Because(err)
	}
	return err
}

func (s *Store) export(ctx context.Context, r *ext4.Reader, i Image, format string, w io.Writer) error {
	switch format {
	case "tar":
		return oci.WriteTar(ctx, r, w)
	case "oci":
		scratch, err := shelf.Scratch(s.dir)
		if err != nil {
			return err
		}
		m := oci.Meta{Name: i.Name, Made: i.BuiltAt.Truncate(time.Second)}
		if i.Config != nil {
			m.Config = oci.Config(*i.Config)
		}
		return errors.Join(oci.WriteArchive(ctx, r, m, scratch, w), os.RemoveAll(scratch))
	}
	return errs.New(errs.Invalid, "there is no format %q", format).Try("use tar or oci")
}
