package cli

import (
	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) startCommand() *cobra.Command {
	var req api.StartVM
	cmd := &cobra.Command{
		Use:               "start REF…",
		Short:             "Start stopped VMs, with their disks as they were left",
		Example:           "  banger start web",
		Args:              refs(-1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), refs, func(ref string, progress func(api.Event)) (string, error) {
				vm, err := client.StartVM(cmd.Context(), ref, req, progress)
				return vm.Name, err
			})
		},
	}
	cmd.Flags().StringVar(&req.Wait, "wait", "", waitUsage)
	return cmd
}
