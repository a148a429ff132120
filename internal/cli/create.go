package cli

import (
	"github.com/spf13/cobra"
)

func (a *app) createCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "create",
		Short:   "Make a VM without starting it, and print its name",
		Example: "  banger create --name web --memory 1G",
		Args:    args(0, 0, ""),
	}
	req := a.machineFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := a.connect(cmd.Context())
		if err != nil {
			return err
		}
		p := a.progress("")
		vm, err := client.CreateVM(cmd.Context(), *req, p.event)
		p.close()
		if err != nil {
			return err
		}
		a.print("%s\n", shown(vm.Name))
		return nil
	}
	return cmd
}
