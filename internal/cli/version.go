package cli

import (
	"context"
	"errors"
	"runtime"

	"github.com/spf13/cobra"

	"banger/api"
)

// versions is what version --json prints.
type versions struct {
	Version string      `json:"version"`
	Commit  string      `json:"commit,omitempty"` // of the source
	Date    string      `json:"date,omitempty"`   // of that commit
	Go      string      `json:"go"`
	Daemon  *api.Daemon `json:"daemon"` // null if none runs
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Show the versions of banger and of the daemon that runs",
		Example: "  banger version --json",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Version: a.Version, Commit: a.Commit, Date: a.Date, Go: runtime.Version()}
			var err error
			if v.Daemon, err = a.runningDaemon(cmd.Context()); err != nil {
				return err
			}
			if asJSON {
				return a.json(v)
			}
			a.print("banger %s", v.Version)
			if v.Commit != "" {
				a.print(" (%s, %s)", v.Commit[:min(12, len(v.Commit))], v.Date)
			}
			a.print("\n")
			if v.Daemon != nil {
				a.print("bangerd %s\n", shown(v.Daemon.Version))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

// runningDaemon describes the daemon, or is nil if none runs.
func (a *app) runningDaemon(ctx context.Context) (*api.Daemon, error) {
	client, _, err := a.find(ctx)
	var d api.Daemon
	if err == nil {
		d, err = client.Daemon(ctx)
	}
	if errors.Is(err, api.ErrNoDaemon) || errors.Is(err, api.ErrGone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &d, nil
}
