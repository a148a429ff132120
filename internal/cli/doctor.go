package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/errs"
)

func (a *app) doctorCommand() *cobra.Command {
	var asJSON, fix, yes bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Examine the host; the exit code is 1 if something must be mended",
		Long: `Examine everything that VMs need of the host, each thing by trying it, and tell of each
whether it is ok, a warning or failed, what that means and what to do. With --fix the commands
that mend what can be mended are run, each when you have agreed to it; then the host is
examined again.`,
		Example: "  banger doctor\n  banger doctor --fix",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			checks, err := a.examine(ctx)
			if err != nil {
				return err
			}
			if fix {
				tried, err := a.mend(ctx, checks, yes)
				if err != nil {
					return err
				}
				if tried {
					if checks, err = a.examine(ctx); err != nil {
						return err
					}
				}
			}
			if asJSON {
				err = a.json(checks)
			} else {
				a.findings(checks)
			}
			if err != nil {
				return err
			}
			for _, c := range checks {
				if c.Status == "failed" {
					return exitCode(exitFailure)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as a JSON array")
	cmd.Flags().BoolVar(&fix, "fix", false, "mend what can be mended")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "with --fix: do not ask")
	return cmd
}

// examine gives the daemon's findings and that about the daemon itself.
func (a *app) examine(ctx context.Context) ([]api.Check, error) {
	client, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	checks, err := client.Doctor(ctx)
	if err != nil {
		return nil, err
	}
	d, err := client.Daemon(ctx)
	if err != nil {
		return nil, err
	}
	c := api.Check{Name: "daemon", Status: "ok", Detail: "version " + d.Version + ", as this program"}
	if d.Version != a.Version {
		c = api.Check{Name: "daemon", Status: "warning", Detail: "version " + d.Version + " runs, and this program is " + a.Version,
			Hint: "end it, and the next command starts the one installed; VMs run on: banger daemon stop", Fix: []string{"banger", "daemon", "stop"}}
	}
	return append(checks, c), nil
}

func (a *app) findings(checks []api.Check) {
	for _, c := range checks {
		a.print("%-8s %s: %s\n", shown(c.Status), shown(c.Name), shown(c.Detail))
		if c.Hint != "" {
			a.print("%8s %s\n", "", shown(c.Hint))
		}
		if c.Fix != nil {
			a.print("%8s to mend it: %s\n", "", shown(commandLine(c.Fix)))
		}
	}
}

// commandLine writes a command as a shell takes it.
func commandLine(argv []string) string {
	var words []string
	for _, w := range argv {
		if strings.ContainsAny(w, " '\"\\$`&|;<>()*?[]#~!{}") || w == "" {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}

// mend runs the commands that mend what is not well. It goes on after one that fails.
func (a *app) mend(ctx context.Context, checks []api.Check, yes bool) (tried bool, err error) {
	for _, c := range checks {
		if c.Status == "ok" || c.Fix == nil {
			continue
		}
		a.note("%s: %s", shown(c.Name), shown(c.Detail))
		if err := a.ask(ctx, yes, "run "+shown(commandLine(c.Fix))+"?"); err == exitCode(exitFailure) {
			continue
		} else if err != nil {
			return tried, err
		}
		tried = true
		program := c.Fix[0]
		if program == "banger" { // this one, wherever it is
			if program, err = os.Executable(); err != nil {
				return tried, errs.New(errs.Unavailable, "find banger's own path").Because(err)
			}
		}
		cmd := exec.CommandContext(ctx, program, c.Fix[1:]...)
		cmd.Env, cmd.Stdout, cmd.Stderr = a.Env, a.Stderr, a.Stderr // what doctor says goes to standard output
		if !a.config.DefaultPlaces() {                              // flags have named others
			cmd.Env = append(a.Env[:len(a.Env):len(a.Env)], a.configEnv()...)
		}
		if err := cmd.Run(); err != nil {
			a.note("%s", fmt.Sprintf("%s: %v", shown(commandLine(c.Fix)), err))
		}
	}
	return tried, nil
}
