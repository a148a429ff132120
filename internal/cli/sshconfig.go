package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"banger/internal/errs"
)

const (
	includedFile = "banger.conf"
	includeLine  = "Include " + includedFile
)

func (a *app) sshConfigCommand() *cobra.Command {
	var install, uninstall bool
	cmd := &cobra.Command{
		Use:   "ssh-config",
		Short: "Print a configuration for ssh, scp, sftp, rsync and others",
		Long: `Print a configuration by which ssh and what builds on it reach every VM as NAME.vm, and
those there are now as NAME too. With --install, ~/.ssh/config includes the part about
NAME.vm for good.

OpenSSH closes what descriptors it was given before it reads its configuration, so
"ssh -F <(banger ssh-config) web" can't work. What does without a file is a pipe, for a
command that reads nothing.`,
		Example: `  banger ssh-config --install && ssh web.vm
  banger ssh-config >vms && ssh -F vms web
  banger ssh-config | ssh -F /dev/stdin web uptime`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if install && uninstall {
				return badUsage("--install and --uninstall exclude each other")
			}
			if uninstall {
				return a.uninstallSSH()
			}
			return a.sshConfig(cmd.Context(), install)
		},
	}
	cmd.Flags().BoolVar(&install, "install", false, "include it in ~/.ssh/config")
	cmd.Flags().BoolVar(&uninstall, "uninstall", false, "take it out again")
	return cmd
}

func (a *app) sshConfig(ctx context.Context, install bool) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	keys, err := client.SSH(ctx)
	if err != nil {
		return err
	}
	self, err := a.self()
	if err != nil {
		return err
	}
	options := sshOptions(self, keys.IdentityFile)
	if install {
		return a.installSSH(block([]string{"*" + domain}, options))
	}
	vms, err := client.VMs(ctx)
	if err != nil {
		return err
	}
	hosts := []string{"*" + domain}
	for _, vm := range vms {
		a.print("%s", block([]string{vm.Name}, []string{"HostName " + vm.Name + domain}))
		hosts = append(hosts, vm.Name)
	}
	a.print("%s", block(hosts, options))
	return nil
}

// block is one Host section of ssh_config.
func block(hosts, options []string) string {
	return "Host " + strings.Join(hosts, " ") + "\n  " + strings.Join(options, "\n  ") + "\n"
}

func (a *app) sshDir() (string, error) {
	home := a.getenv("HOME")
	if !filepath.IsAbs(home) {
		return "", errs.New(errs.Invalid, "there is no place for ssh's configuration: HOME is not set")
	}
	return filepath.Join(home, ".ssh"), nil
}

// installSSH writes the file that ~/.ssh/config includes, and the line that includes it,
// once, at the top, where no Host section of the person's can swallow it.
func (a *app) installSSH(text string) error {
	dir, err := a.sshDir()
	if err != nil {
		return err
	}
	failed := errs.New(errs.Unavailable, "install the configuration for ssh")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return failed.Because(err)
	}
	text = "# Written by `banger ssh-config --install`, which writes it anew;\n" +
		"# `banger ssh-config --uninstall` takes it away.\n" + text
	if err := renameio.WriteFile(filepath.Join(dir, includedFile), []byte(text), 0o600); err != nil {
		return failed.Because(err)
	}
	if err := editSSHConfig(dir, func(old string) string {
		if includes(old) {
			return old
		}
		return includeLine + "\n" + old
	}); err != nil {
		return failed.Because(err)
	}
	a.note("ssh reaches VMs as NAME%s now", domain)
	return nil
}

// uninstallSSH undoes installSSH.
func (a *app) uninstallSSH() error {
	dir, err := a.sshDir()
	if err != nil {
		return err
	}
	failed := errs.New(errs.Unavailable, "take banger out of ssh's configuration")
	if err := editSSHConfig(dir, withoutInclude); err != nil {
		return failed.Because(err)
	}
	if err := os.Remove(filepath.Join(dir, includedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failed.Because(err)
	}
	return nil
}

func isInclude(line string) bool { return strings.TrimSpace(line) == includeLine }

func includes(config string) bool {
	for line := range strings.Lines(config) {
		if isInclude(line) {
			return true
		}
	}
	return false
}

func withoutInclude(config string) string {
	var b strings.Builder
	for line := range strings.Lines(config) {
		if !isInclude(line) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// editSSHConfig changes ~/.ssh/config, at once and with its mode. Where it is a symbolic
// link the file behind it changes. One left empty is removed.
func editSSHConfig(dir string, edit func(string) string) error {
	path := filepath.Join(dir, "config")
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	mode := fs.FileMode(0o600)
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	changed := edit(string(old))
	switch {
	case changed == string(old):
		return nil
	case changed == "":
		return os.Remove(path)
	}
	if err := renameio.WriteFile(path, []byte(changed), mode, renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
