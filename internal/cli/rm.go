package cli

import (
	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rm REF…",
		Short:             "Remove VMs with their disks",
		Example:           "  banger rm -f web",
		Args:              refs(-1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), refs, func(ref string, progress func(api.Event)) (string, error) {
				vm, err := client.VM(cmd.Context(), ref)
				if err != nil {
					return "", err
				}
				return vm.Name, client.RemoveVM(cmd.Context(), vm.ID, force, progress)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove running VMs too")
	return cmd
}
