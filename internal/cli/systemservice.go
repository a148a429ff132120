package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/errs"
	"banger/internal/service"
)

// systemdRuns is a directory that there is where systemd is the host's init.
const systemdRuns = "/run/systemd/system"

// hostPlace says where the files of the service belong.
type hostPlace struct {
	root   string // directory of the host's files: "/", or where a package is made
	prefix string // of make install, or empty: this program is anywhere
}

func (p *hostPlace) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.root, "root", "/", "a directory that has the host's files, where that is not the running host")
	cmd.Flags().StringVar(&p.prefix, "prefix", "", "where the programs are: `DIR`/bin (default: where they are now)")
}

func (p *hostPlace) live() bool { return filepath.Clean(p.root) == "/" }

// files lists what belongs there beside an owner's: nothing where a package brought it.
func (a *app) serviceFiles(p hostPlace) ([]service.File, error) {
	if p.prefix != "" {
		return service.Prefix(p.prefix).Files(), nil
	}
	daemon, err := a.findDaemon()
	if err != nil {
		return nil, err
	}
	bin := filepath.Dir(daemon)
	packaged := service.Prefix(filepath.Dir(bin)).Files()
	if slices.ContainsFunc(packaged, func(f service.File) bool {
		_, err := os.Stat(f.Path)
		return err == nil && filepath.Base(f.Path) == "bangerd.service"
	}) {
		return nil, nil
	}
	return service.Local(bin).Files(), nil
}

func (a *app) systemInstallCommand() *cobra.Command {
	var p hostPlace
	var owner string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Have systemd run root's daemon, for root and perhaps one user",
		Long: `Put systemd's units of the daemon and its directories on this host, and have
systemd listen for it. With --owner the socket is that user's, who then has root's daemon:
bridges and names for their VMs, and all of root's powers through it.`,
		Example: "  sudo banger system install --owner $USER",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			files, err := a.serviceFiles(p)
			if err != nil {
				return err
			}
			if owner != "" {
				u, err := user.Lookup(owner)
				if err != nil {
					return errs.New(errs.Invalid, "there is no user %q on this host", owner).Try("name one that can log in here")
				}
				files = append(files, service.Owner(u.Username)...)
			}
			if err := service.Write(p.root, files); err != nil {
				return asRoot("install", err)
			}
			for _, f := range files {
				a.print("%s\n", filepath.Join(p.root, f.Path))
			}
			if !p.live() {
				return nil
			}
			return a.startService(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&owner, "owner", "", "a `USER` whose daemon it is, beside root")
	p.flags(cmd)
	return cmd
}

func asRoot(what string, err error) error {
	if !errors.Is(err, os.ErrPermission) {
		return err
	}
	return errs.New(errs.Unavailable, "%s the system's daemon", what).Because(err).Try("as root: sudo banger system %s", what)
}

// startService lets systemd know of the units, and listen.
func (a *app) startService(ctx context.Context) error {
	// Root's daemon that a command has started holds the state directory. VMs run on.
	client := api.New(a.config.Socket)
	if ping(ctx, client) == nil {
		if err := client.StopDaemon(ctx); err != nil {
			return err
		}
	}
	if err := hostCommand(ctx, "systemd-tmpfiles", "--create", "banger.conf"); err != nil && !errors.Is(err, exec.ErrNotFound) {
		return err
	}
	if _, err := os.Stat(systemdRuns); err != nil {
		a.note("systemd does not run this host; where it does, it takes the daemon up: systemctl enable --now bangerd.socket")
		return nil
	}
	if err := hostCommand(ctx, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	// One that runs gives the socket up: whose it is may have changed.
	if err := hostCommand(ctx, "systemctl", "stop", "bangerd.service", "bangerd.socket"); err != nil {
		return err
	}
	// At boot the daemon itself starts, for VMs that are to run then; else its first client starts it.
	if err := hostCommand(ctx, "systemctl", "enable", "bangerd.service", "bangerd.socket"); err != nil {
		return err
	}
	return hostCommand(ctx, "systemctl", "start", "bangerd.socket")
}

func (a *app) systemUninstallCommand() *cobra.Command {
	var p hostPlace
	cmd := &cobra.Command{
		Use:     "uninstall",
		Short:   "Undo system install: the daemon and its units go; VMs run on, and state stays",
		Example: "  sudo banger system uninstall",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			files, err := a.serviceFiles(p)
			if err != nil {
				return err
			}
			if _, err := os.Stat(systemdRuns); err == nil && p.live() {
				if err := hostCommand(ctx, "systemctl", "disable", "--now", "bangerd.socket", "bangerd.service"); err != nil {
					return err
				}
			}
			gone, err := service.Remove(p.root, append(files, service.Owner("")...))
			for _, path := range gone {
				a.print("%s\n", filepath.Join(p.root, path))
			}
			if err != nil {
				return asRoot("uninstall", err)
			}
			if _, err := os.Stat(systemdRuns); err == nil && p.live() {
				return hostCommand(ctx, "systemctl", "daemon-reload")
			}
			return nil
		},
	}
	p.flags(cmd)
	return cmd
}

// hostCommand runs a program of the host's.
func hostCommand(ctx context.Context, argv ...string) error {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return errs.New(errs.Unavailable, "%s failed", strings.Join(argv, " ")).Because(fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))).
			Try("systemctl status bangerd.socket may tell more")
	}
	return nil
}
