package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Look after images, the root filesystems of VMs", Example: "  banger image ls"}
	group(cmd)
	cmd.AddCommand(
		listCommand(a, "images", (*api.Client).Images, imageRows),
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
		removeCommand(a, "image", (*api.Client).RemoveImage),
	)
	return cmd
}

func imageRows(images []api.Image) [][]string {
	rows := [][]string{{"NAME", "SYSTEM", "DISK", "SIZE", "BUILT", "USED BY"}}
	for _, i := range images {
		rows = append(rows, []string{i.Name, strings.TrimSpace(i.Distribution + " " + i.Release), bytesText(i.AllocatedBytes),
			bytesText(i.VirtualBytes), ago(time.Since(i.BuiltAt)), strings.Join(i.UsedBy, ",")})
	}
	return rows
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
