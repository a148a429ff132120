package cli

import (
	"context"
	"errors"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"banger/api"
)

// versions is what version --json prints.
type versions struct {
	Version string      `json:"version"`
	Commit  string      `json:"commit,omitempty"` // of the source, with -dirty where it was changed
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
			v := versions{Version: a.Version, Commit: commit(), Go: runtime.Version()}
			var err error
			if v.Daemon, err = a.runningDaemon(cmd.Context()); err != nil {
				return err
			}
			if asJSON {
				return a.json(v)
			}
			a.print("banger %s", v.Version)
			if v.Commit != "" {
				a.print(" (%s)", v.Commit)
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
	client := api.New(a.config.Socket)
	var d api.Daemon
	err := ping(ctx, client)
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

func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var revision, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if revision == "" {
		return ""
	}
	return revision[:min(12, len(revision))] + dirty
}
