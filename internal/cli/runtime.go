package cli

import (
	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) runtimeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "runtime",
		Short:   "Look after the runtime bundle, the kernel and images that banger comes with",
		Example: "  banger runtime build",
	}
	group(cmd)
	cmd.AddCommand(a.runtimePathCommand(), a.runtimeBuildCommand())
	return cmd
}

func (a *app) runtimePathCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "path",
		Short:   "Show where the runtime bundle is",
		Example: "  banger runtime path",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			r, err := client.Runtime(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.json(r)
			}
			a.print("%s\n", shown(r.Path))
			if isTerminal(a.Stderr) {
				a.note("found by %s", shown(r.Rule))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "with the rule by which it was found, as JSON")
	return cmd
}

func (a *app) runtimeBuildCommand() *cobra.Command {
	var req api.BuildRuntime
	cmd := &cobra.Command{
		Use:     "build [NAME…]",
		Short:   "Build what the runtime bundle lacks, or the parts named",
		Example: "  banger runtime build tiny",
		Args:    args(0, -1, ""),
		RunE: func(cmd *cobra.Command, names []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			req.Only = unique(names)
			p := a.progress("")
			defer p.close()
			return client.BuildRuntime(cmd.Context(), req, p.event)
		},
	}
	cmd.Flags().BoolVar(&req.Force, "force", false, "build what is there already too")
	return cmd
}
