package cli

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/errs"
)

func (a *app) runtimeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "runtime",
		Short:   "Look after the runtime bundle, the kernel and images that banger comes with",
		Example: "  banger runtime build",
	}
	group(cmd)
	cmd.AddCommand(a.runtimePathCommand(), a.runtimeBuildCommand(), a.runtimeFetchCommand(), a.runtimeInstallCommand(),
		a.runtimeVerifyCommand(), a.runtimePackageCommand())
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
		Example: "  banger runtime build image/tiny",
		Args:    args(0, -1, ""),
		RunE: func(cmd *cobra.Command, names []string) error {
			req.Only = unique(names)
			return a.operate(cmd.Context(), func(c *api.Client, progress func(api.Event)) error {
				return c.BuildRuntime(cmd.Context(), req, progress)
			})
		},
	}
	cmd.Flags().BoolVar(&req.Force, "force", false, "build what is there already too")
	return cmd
}

// operate runs an operation of the daemon's and shows its progress.
func (a *app) operate(ctx context.Context, run func(*api.Client, func(api.Event)) error) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	p := a.progress("")
	defer p.close()
	return run(client, p.event)
}

func (a *app) runtimeFetchCommand() *cobra.Command {
	var req api.FetchRuntime
	var manifest string
	var rollback bool
	cmd := &cobra.Command{
		Use:   "fetch",
		Short: "Fetch a packed runtime bundle and install it",
		Long: `Fetch a packed runtime bundle by https, or from a file, and put it in the place of the one
there is. It is checked against its SHA-256 and, where a key is configured, its signature
before it is used; the bundle before stays for --rollback. A fetch that was cut short goes on
where it was. Disks of VMs keep the images that they are based on: all that the bundle before
had stay, for disks of other users may be based on them, until --drop-old.`,
		Example: `  banger runtime fetch --url https://example.com/banger-runtime.tar.zst
  banger runtime fetch --rollback`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rollback {
				if manifest != "" || req != (api.FetchRuntime{}) {
					return badUsage("--rollback fetches nothing, so it takes no other flag")
				}
				return a.operate(cmd.Context(), func(c *api.Client, progress func(api.Event)) error {
					return c.RollBackRuntime(cmd.Context(), progress)
				})
			}
			if manifest != "" {
				if err := readManifest(manifest, &req); err != nil {
					return err
				}
			}
			return a.operate(cmd.Context(), func(c *api.Client, progress func(api.Event)) error {
				return c.FetchRuntime(cmd.Context(), req, progress)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.URL, "url", "", "where the archive is: https://… or file:///…; beside it lie .sha256 and .minisig")
	f.StringVar(&manifest, "manifest", "", "a `FILE` as runtime-bundle.toml whose [archive] tells url, sha256 and bytes")
	f.StringVar(&req.SHA256, "sha256", "", "the archive's SHA-256, which is then not fetched")
	f.StringVar(&req.Key, "key", "", "the minisign public key that must have signed it")
	f.BoolVar(&req.AllowDowngrade, "allow-downgrade", false, "take it even if it is older than the one there is")
	dropOldFlag(cmd, &req.DropOld)
	f.BoolVar(&rollback, "rollback", false, "go back to the bundle before the last installation")
	return cmd
}

func (a *app) runtimeInstallCommand() *cobra.Command {
	var req api.InstallRuntime
	cmd := &cobra.Command{
		Use:   "install DIR",
		Short: "Install a copy of the runtime bundle in a directory",
		Long: `Put a copy of the runtime bundle in a directory in the place of the one there is, as fetch does
with a packed one. Where a key is configured it must be packed and signed.`,
		Example: "  banger runtime install ./runtime",
		Args:    args(1, 1, "a directory"),
		RunE: func(cmd *cobra.Command, dirs []string) (err error) {
			if req.Dir, err = filepath.Abs(dirs[0]); err != nil {
				return err
			}
			return a.operate(cmd.Context(), func(c *api.Client, progress func(api.Event)) error {
				return c.InstallRuntime(cmd.Context(), req, progress)
			})
		},
	}
	cmd.Flags().BoolVar(&req.AllowDowngrade, "allow-downgrade", false, "take it even if it is older than the one there is")
	dropOldFlag(cmd, &req.DropOld)
	return cmd
}

func dropOldFlag(cmd *cobra.Command, drop *bool) {
	cmd.Flags().BoolVar(drop, "drop-old", false, "let go of images of earlier bundles that no disk of this daemon's is based on")
}

func (a *app) runtimeVerifyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "verify",
		Short:   "Check every file of the runtime bundle; the exit code is 1 if one differs, is missing or is too many",
		Example: "  banger runtime verify",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			all, bad := []api.Verdict{}, 0
			err = client.VerifyRuntime(cmd.Context(), func(v api.Verdict) bool {
				if v.Problem != "" {
					bad++
				}
				if all = append(all, v); !asJSON {
					a.print("%s\n", verdictLine(v))
				}
				return true
			})
			if err == nil && asJSON {
				err = a.json(all)
			}
			if err == nil && bad > 0 {
				return errs.New(errs.Conflict, "the runtime bundle is not as it was made: %d of %d files", bad, len(all)).
					Try("build or fetch it anew: banger runtime build --force, banger runtime fetch")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as a JSON array")
	return cmd
}

func verdictLine(v api.Verdict) string {
	if v.Problem == "" {
		return "ok       " + shown(v.What)
	}
	return fmt.Sprintf("damaged  %s: %s", shown(v.What), shown(v.Problem))
}
