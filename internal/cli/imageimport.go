package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/errs"
)

func (a *app) imageImportCommand() *cobra.Command {
	var req api.ImportImage
	cmd := &cobra.Command{
		Use:                   "import [flags] PATH|- [NAME]",
		DisableFlagsInUseLine: true,
		Short:                 "Make an image of a container image or a root filesystem",
		Long: `Make an image of what lies at PATH, or comes on standard input: an OCI layout (a directory) or
archive, a Docker archive (of docker save, podman save, skopeo, buildah), a tar archive of a root
filesystem, compressed or not, or an ext4 filesystem. NAME is REPOSITORY or REPOSITORY:TAG; without
one it is made of the file's.`,
		Example: "  docker save debian:12 | banger image import - debian:12",
		Args:    args(1, 2, "a file or directory, and perhaps a name"),
		RunE: func(cmd *cobra.Command, given []string) error {
			stdin := given[0] == "-"
			switch {
			case len(given) == 2:
				req.Name = given[1]
			case stdin:
				return badUsage("what comes on standard input needs a name: banger image import - NAME")
			default:
				req.Name = imageName(given[0])
			}
			from := a.Stdin
			if !stdin {
				var err error
				if req.Path, err = filepath.Abs(given[0]); err != nil {
					return err
				}
				// A pipe of this process's is nothing that the daemon could open.
				if info, err := os.Stat(req.Path); err == nil && !info.Mode().IsRegular() && !info.IsDir() {
					pipe, err := os.Open(req.Path)
					if err != nil {
						return errs.New(errs.Invalid, "can't read %s", given[0]).Because(err)
					}
					defer pipe.Close()
					from, stdin = pipe, true
				}
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			p := a.bars()
			if stdin {
				err = client.ImportImageFrom(cmd.Context(), req, from, p.event)
			} else {
				err = client.ImportImage(cmd.Context(), req, p.event)
			}
			p.close()
			if err != nil {
				return err
			}
			a.print("%s\n", shown(req.Name))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Ref, "ref", "", "which image, where PATH holds several: its name or `tag`")
	f.StringVar(&req.Platform, "platform", "", "`os/architecture` of the image (linux/amd64)")
	f.Var(size{&req.SizeBytes}, "size", "of its filesystem, like 8G; what fits if none is given")
	return cmd
}

// endings are what file names end in that image names don't.
var endings = regexp.MustCompile(`(\.(tar|tgz|oci|ext4|img|raw|gz|xz|zst|bz2))+$`)

// imageName makes a name of a file's: debian-12 of /srv/Debian-12.tar.gz.
func imageName(path string) string {
	name := endings.ReplaceAllString(strings.ToLower(filepath.Base(path)), "")
	name = strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(name, "-"), "-")
	if name == "" {
		return "imported"
	}
	return name
}
