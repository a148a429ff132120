package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs REF",
		Short: "Show a VM's console log",
		Long: `Show what a VM wrote to its console. On a terminal, colours pass and other control
characters are spelt out; elsewhere the bytes are untouched.`,
		Example:           "  banger logs -f web",
		Args:              refs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			log, err := client.Logs(cmd.Context(), args[0], follow)
			if err != nil {
				return err
			}
			defer log.Close()
			var w io.Writer = a.out
			if isTerminal(a.Stdout) {
				w = &calm{w: w}
			}
			_, err = io.Copy(w, log)
			return left(cmd.Context(), err)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the VM stops")
	return cmd
}

// left ends a command that a person watches until they have seen enough: their interrupt
// is no failure to speak of.
func left(ctx context.Context, err error) error {
	if s, ok := interruption(ctx); ok {
		return exitCode(exitSignal + int(s))
	}
	return err
}
