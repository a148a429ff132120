package cli

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) imageBuildCommand() *cobra.Command {
	var req api.BuildImage
	var warm bool
	cmd := &cobra.Command{
		Use:   "build NAME",
		Short: "Build an image from a manifest of packages, files and commands",
		Long: `Build an image from a manifest: the file given with -f, or the one that banger carries for the
name (tiny, debian, debian-docker). What has not changed since it was built is not built again; with
nothing changed the image stays as it is. VMs of an image that is built anew keep theirs.`,
		Example: "  banger image build debian\n  banger image build web -f image.toml",
		Args:    args(1, 1, "a name for the image"),
		RunE: func(cmd *cobra.Command, given []string) (err error) {
			req.Name = given[0]
			if req.Path != "" {
				if req.Path, err = filepath.Abs(req.Path); err != nil {
					return err
				}
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			p := a.bars()
			err = client.BuildImage(cmd.Context(), req, p.event)
			if err == nil && warm {
				err = client.BuildTemplate(cmd.Context(), api.CreateVM{Image: req.Name}, p.event)
			}
			p.close()
			if err == nil {
				a.print("%s\n", shown(req.Name))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&req.Path, "file", "f", "", "the manifest")
	f.Var(size{&req.SizeBytes}, "size", "size of the image, instead of the manifest's")
	f.BoolVar(&warm, "warm", false, "then make the template from which VMs of the image start warm")
	f.BoolVar(&req.Refresh, "refresh", false, "take the mirror's newest packages, even if nothing else has changed")
	return cmd
}

func (a *app) imageCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "check NAME…",
		Short:   "Ask the mirror for newer versions of images' packages",
		Example: "  banger image check debian",
		Args:    args(1, -1, "an image"),
		RunE: func(cmd *cobra.Command, names []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			rows := [][]string{{"IMAGE", "PACKAGE", "HAS", "NOW"}}
			var failed error
			for _, name := range unique(names) {
				newer, err := client.CheckImage(cmd.Context(), name)
				if err != nil {
					a.report(err)
					failed = exitCode(exitFailure)
					continue
				}
				for _, n := range newer {
					rows = append(rows, []string{name, n.Name, n.Has, n.Now})
				}
				if i, err := client.Image(cmd.Context(), name); err == nil && i.Rebuild != "" {
					a.note("%s", shown(fmt.Sprintf("%s is stale: %s; to build it anew: %s", name, i.Stale, i.Rebuild)))
				}
			}
			if len(rows) > 1 {
				if err := a.table(rows); err != nil {
					return err
				}
			}
			return failed
		},
	}
}
