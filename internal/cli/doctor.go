package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "doctor",
		Short:   "Examine the host; the exit code is 1 if something must be mended",
		Example: "  banger doctor",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			checks, err := client.Doctor(cmd.Context())
			if err != nil {
				return err
			}
			failed := false
			for _, c := range checks {
				failed = failed || c.Status == "failed"
				if asJSON {
					continue
				}
				a.print("%-8s %s: %s\n", shown(c.Status), shown(c.Name), shown(c.Detail))
				if c.Hint != "" {
					a.print("%8s %s\n", "", shown(c.Hint))
				}
			}
			if asJSON {
				if err := a.json(checks); err != nil {
					return fmt.Errorf("print the findings: %w", err)
				}
			}
			if failed {
				return exitCode(exitFailure)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as a JSON array")
	return cmd
}
