package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) templateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "template",
		Short: "Look after templates, the saved machines that VMs start warm from",
		Long: `A template is a machine that was saved when it had booted. A VM with the same image,
kernel, machine and size of disk goes on from it instead of booting, in a fraction of the
time. Templates come by themselves after the first cold start of their kind, and are a
cache: all can be removed at any time.`,
		Example: "  banger template build debian",
	}
	group(cmd)
	cmd.AddCommand(listCommand(a, "templates", (*api.Client).Templates, templateRows),
		inspectCommand(a, "template", "debian-5f2c0a9b", (*api.Client).Templates, func(x api.Template) string { return x.Name }), a.templateBuildCommand(), a.templateRmCommand(), a.templatePruneCommand())
	return cmd
}

func templateRows(ts []api.Template) [][]string {
	rows := [][]string{{"NAME", "IMAGE", "CPUS", "MEM", "DISK", "NET", "ACCEL", "SIZE", "USED", "USED BY"}}
	for _, t := range ts {
		used := ago(time.Since(t.UsedAt))
		if t.Retired {
			used = "retired"
		}
		rows = append(rows, []string{t.Name, t.Image, strconv.Itoa(t.CPUs), bytesText(t.MemoryBytes), t.DiskDriver + " " + bytesText(t.DiskBytes),
			t.Net, t.Accel, bytesText(t.Bytes), used, strings.Join(t.UsedBy, ",")})
	}
	return rows
}

func (a *app) templateBuildCommand() *cobra.Command {
	req := new(api.CreateVM)
	cmd := &cobra.Command{
		Use:   "build [IMAGE]",
		Short: "Make the template for VMs of an image, unless it is there",
		Long: `Boot a machine, save it when it has finished its boot, and keep that. VMs that are asked for
with the same flags then start warm.`,
		Example: "  banger template build debian --memory 1G",
		Args:    args(0, 1, ""),
	}
	shapeFlags(cmd, req)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			req.Image = args[0]
		}
		client, err := a.connect(cmd.Context())
		if err != nil {
			return err
		}
		p := a.progress("")
		defer p.close()
		return client.BuildTemplate(cmd.Context(), *req, p.event)
	}
	return cmd
}

func (a *app) templateRmCommand() *cobra.Command {
	return removeCommand(a, "template", (*api.Client).RemoveTemplate)
}

func (a *app) templatePruneCommand() *cobra.Command {
	var keep *int64
	cmd := &cobra.Command{
		Use:     "prune",
		Short:   "Remove the templates that no VM's disk lies on",
		Example: "  banger template prune --keep 1G",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.pruneTemplates(cmd.Context(), keep)
		},
	}
	cmd.Flags().Var(size{&keep}, "keep", "leave as much as this of those that were used last")
	return cmd
}

func (a *app) pruneTemplates(ctx context.Context, keep *int64) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	if keep == nil {
		keep = new(int64)
	}
	gone, err := client.PruneTemplates(ctx, *keep)
	if err != nil {
		return err
	}
	for _, t := range gone {
		a.print("%s\n", shown(t.Name))
	}
	return nil
}
