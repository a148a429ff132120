package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Look after images, the root filesystems of VMs", Example: "  banger image ls"}
	group(cmd)
	cmd.AddCommand(
		listCommand(a, "images", a.listImages, imageRows),
		&cobra.Command{
			Use:     "inspect NAME…",
			Short:   "Show all there is to know of images, as a JSON array",
			Example: "  banger image inspect debian",
			Args:    args(1, -1, "an image"),
			RunE: func(cmd *cobra.Command, names []string) error {
				client, err := a.connect(cmd.Context())
				if err != nil {
					return err
				}
				return inspect(a, names, func(name string) (api.Image, error) { return client.Image(cmd.Context(), name) })
			},
		},
		a.imageImportCommand(),
		a.imagePullCommand(),
		a.imageExportCommand(),
		removeCommand(a, "image", (*api.Client).RemoveImage),
		&cobra.Command{
			Use:   "tag IMAGE NAME…",
			Short: "Let names mean an image",
			Long: `Let names mean an image, which keeps those that it has. A name is REPOSITORY or REPOSITORY:TAG;
what it meant before stays as long as a VM uses it, and until banger image prune.`,
			Example: "  banger image tag debian base:1 base",
			Args:    args(2, -1, "an image and a name for it"),
			RunE: func(cmd *cobra.Command, given []string) error {
				client, err := a.connect(cmd.Context())
				if err != nil {
					return err
				}
				var failed error
				for _, name := range unique(given[1:]) {
					if err := client.TagImage(cmd.Context(), api.TagImage{Image: given[0], Name: name}); err != nil {
						a.report(err)
						failed = exitCode(exitFailure)
					}
				}
				return failed
			},
		},
		a.imageBuildCommand(),
		a.imageCheckCommand(),
		a.customizeCommand(),
		a.imagePruneCommand(),
	)
	return cmd
}

func (a *app) imagePruneCommand() *cobra.Command {
	var all, dry bool
	cmd := &cobra.Command{
		Use:     "prune",
		Short:   "Remove the images that no name means and no VM uses",
		Example: "  banger image prune",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			pruned, err := client.PruneImages(cmd.Context(), all, dry)
			bytes := pruned.PhaseBytes + pruned.PullBytes
			for _, i := range pruned.Images {
				a.print("%s\n", shown(i.Title))
				bytes += i.AllocatedBytes
			}
			if err == nil && !dry {
				a.note("%s freed", bytesText(bytes))
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also what builds and pulls have kept to be quicker the next time")
	cmd.Flags().BoolVarP(&dry, "dry-run", "n", false, "only list them")
	return cmd
}

// listImages lists images, and tells what to do about those that are damaged.
func (a *app) listImages(client *api.Client, ctx context.Context) ([]api.Image, error) {
	images, err := client.Images(ctx)
	for _, i := range images {
		if i.Damage != "" {
			a.note("%s", shownLines(i.Damage+"\n  "+i.Mend))
		}
	}
	return images, err
}

func imageRows(images []api.Image) [][]string {
	rows := [][]string{{"NAME", "DIGEST", "SYSTEM", "DISK", "SIZE", "BUILT", "STATE", "USED BY"}}
	for _, i := range images {
		names := i.Names
		state, built := "", ago(time.Since(i.BuiltAt))
		switch {
		case i.Damage != "":
			state, built = "DAMAGED", ""
		case i.Stale != "":
			state = "STALE"
		}
		if len(names) == 0 {
			names = []string{i.Title}
		}
		rows = append(rows, []string{strings.Join(names, ","), shortDigest(i.Digest), strings.TrimSpace(i.Distribution + " " + i.Release), bytesText(i.AllocatedBytes),
			bytesText(i.VirtualBytes), built, state, strings.Join(i.UsedBy, ",")})
	}
	return rows
}

// shortDigest is enough of a digest to tell images apart, and to refer to one after "sha256:".
func shortDigest(digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return hex[:min(len(hex), 12)]
}

// listCommand is the ls of a noun other than a VM.
func listCommand[T any](a *app, what string, list func(*api.Client, context.Context) ([]T, error), rows func([]T) [][]string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List " + what,
		Example: "  banger " + strings.TrimSuffix(what, "s") + " ls --json",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			found, err := list(client, cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.json(append([]T{}, found...))
			}
			return a.table(rows(found))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as a JSON array")
	return cmd
}

// inspectCommand is the inspect of a noun other than a VM, of which all are listed.
func inspectCommand[T any](a *app, noun, example string, list func(*api.Client, context.Context) ([]T, error), nameOf func(T) string) *cobra.Command {
	return &cobra.Command{
		Use:     "inspect NAME…",
		Short:   fmt.Sprintf("Show all there is to know of %ss, as a JSON array", noun),
		Example: fmt.Sprintf("  banger %s inspect %s", noun, example),
		Args:    args(1, -1, "a "+noun),
		RunE: func(cmd *cobra.Command, names []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			all, err := list(client, cmd.Context())
			if err != nil {
				return err
			}
			return inspect(a, names, func(name string) (found T, err error) {
				if i := slices.IndexFunc(all, func(x T) bool { return nameOf(x) == name }); i >= 0 {
					return all[i], nil
				}
				return found, &api.Error{Code: "not_found", Message: "there is no " + noun + " " + name, Hint: "banger " + noun + " ls lists those there are"}
			})
		},
	}
}

// removeCommand is the rm of a noun other than a VM.
func removeCommand(a *app, noun string, remove func(*api.Client, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME…",
		Short:   fmt.Sprintf("Remove %ss that no VM uses", noun),
		Example: fmt.Sprintf("  banger %s rm old", noun),
		Args:    args(1, -1, "the name of one"),
		RunE: func(cmd *cobra.Command, names []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), names, func(name string, _ func(api.Event)) (string, error) {
				return name, remove(client, cmd.Context(), name)
			})
		},
	}
}
