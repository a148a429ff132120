package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"banger/internal/errs"
)

func (a *app) imageExportCommand() *cobra.Command {
	var to, format string
	cmd := &cobra.Command{
		Use:                   "export [flags] IMAGE -o FILE|-",
		DisableFlagsInUseLine: true,
		Short:                 "Write an image's files as an archive",
		Long: `Write an image's files as a tar archive of its root filesystem, or as an OCI archive, which podman,
buildah and skopeo read (oci-archive:FILE). FILE appears whole or not at all.`,
		Example: "  banger image export debian --format oci -o debian.tar",
		Args:    args(1, 1, "an image"),
		RunE: func(cmd *cobra.Command, given []string) error {
			switch {
			case to == "":
				return badUsage("name the file to write with -o, or -o - for standard output")
			case format != "tar" && format != "oci":
				return badUsage("there is no format %q: use tar or oci", format)
			case to == "-" && isTerminal(a.Stdout):
				return badUsage("an archive is nothing for a terminal: name a file with -o")
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			p := a.progress("")
			defer p.close()
			export := func(w io.Writer) error {
				return client.ExportImage(cmd.Context(), given[0], format, &tally{w: w, tell: func(n int64) { p.bytes(n, 0) }})
			}
			if to == "-" {
				return export(a.Stdout)
			}
			return writeWhole(to, export)
		},
	}
	cmd.Flags().StringVarP(&to, "output", "o", "", "`file` to write, or - for standard output")
	cmd.Flags().StringVar(&format, "format", "tar", "tar or oci")
	return cmd
}

// writeWhole makes a file, which appears when all of it is written, or writes to what is none.
func writeWhole(path string, write func(io.Writer) error) error {
	switch info, err := os.Stat(path); {
	case err != nil || info.Mode().IsRegular():
	case info.IsDir():
		return errs.New(errs.Invalid, "%s is a directory", path).Try("name a file in it")
	default: // a pipe or a device stays what it is
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return errs.New(errs.Invalid, "can't write %s", path).Because(err)
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return errs.New(errs.Invalid, "can't write %s", path).Because(err)
	}
	err = write(f)
	if err == nil {
		err = errors.Join(f.Chmod(0o644), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// tally tells how much has been written.
type tally struct {
	w    io.Writer
	n    int64
	tell func(int64)
}

func (t *tally) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	t.n += int64(n)
	t.tell(t.n)
	return n, err
}
