package cli

import (
	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) stopCommand() *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use:               "stop REF…",
		Short:             "Stop VMs; their disks stay",
		Example:           "  banger stop -t 5 web",
		Args:              refs(-1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			var req api.StopVM
			if cmd.Flags().Changed("timeout") {
				req.TimeoutSeconds = &seconds
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), refs, func(ref string, progress func(api.Event)) (string, error) {
				vm, err := client.StopVM(cmd.Context(), ref, req, progress)
				return vm.Name, err
			})
		},
	}
	cmd.Flags().IntVarP(&seconds, "timeout", "t", 0, "`seconds` that the guest has to power off before it is killed; 0 kills it at once")
	cmd.Flag("timeout").DefValue = "" // the daemon's
	return cmd
}
