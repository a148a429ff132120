package cli

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/errs"
)

func (a *app) sshCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:                   "ssh REF [--] [ARG…]",
		DisableFlagsInUseLine: true,
		Short:                 "Log in to a VM with the system's ssh",
		Long: `Log in to a VM with the system's ssh, through the control channel: the VM needs neither
a network nor an SSH server. What follows REF goes to ssh: options of its own, a command.`,
		Example:           "  banger ssh web -- -L 8080:localhost:80",
		Args:              refThen,
		ValidArgsFunction: a.completeVMs,
		Annotations:       guestsCode,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ssh(cmd.Context(), args[0], command(args[1:]))
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// ssh becomes the system's ssh. All it needs goes in options, so that there is no file to
// clean up: ssh closes every inherited descriptor before it could read one.
func (a *app) ssh(ctx context.Context, ref string, rest []string) error {
	program, err := exec.LookPath("ssh")
	if err != nil {
		return errs.New(errs.Unavailable, "there is no ssh on this host").
			Try("install openssh-client, or use `banger exec -t %s`", ref)
	}
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	vm, err := client.VM(ctx, ref)
	if err != nil {
		return err
	}
	if vm.State != api.StateRunning {
		return errs.New(errs.Conflict, "%s does not run: it is %s", vm.Name, vm.State).Try("banger start %s", vm.Name)
	}
	keys, err := client.SSH(ctx)
	if err != nil {
		return err
	}
	self, err := a.self()
	if err != nil {
		return err
	}
	argv := []string{"ssh", "-F", "none"}
	for _, o := range sshOptions(self, keys.IdentityFile) {
		argv = append(argv, "-o", o)
	}
	argv = append(append(argv, vm.Name+domain), rest...)
	if err := syscall.Exec(program, argv, a.Env); err != nil {
		return errs.New(errs.Unavailable, "run %s", program).Because(err)
	}
	return nil
}

// domain is what host names of VMs end in.
const domain = ".vm"

// sshOptions are the options of ssh_config by which `ssh NAME.vm` reaches the VM NAME. The
// host key is pinned: whatever is not banger's own is refused, and nobody is asked.
func sshOptions(self selfCommand, identity string) []string {
	return []string{
		"ProxyCommand " + self.shell("ssh-proxy") + " %h",
		"KnownHostsCommand " + self.argv("ssh-known-hosts"),
		"UserKnownHostsFile /dev/null",
		"GlobalKnownHostsFile /dev/null",
		"StrictHostKeyChecking yes",
		"UpdateHostKeys no",
		"User root",
		"IdentityFile " + configQuote(identity),
		"IdentitiesOnly yes",
		"PreferredAuthentications publickey",
	}
}

// selfCommand is how others call this program so that they reach the same daemon.
type selfCommand []string

// self gives the program's path and, where the environment moves banger's places, flags
// that say so: ssh may be run from a shell that has no such environment.
func (a *app) self() (selfCommand, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, errs.New(errs.Unavailable, "find banger's own path").Because(err)
	}
	self := selfCommand{path}
	for _, s := range a.config.Settings {
		if named := !s.IsDefault() && !s.InFile(); named && (s.Key.Name == "state_dir" || s.Key.Name == "socket") {
			self = append(self, "--"+s.Key.Flag(), s.Text())
		}
	}
	for _, word := range self {
		if strings.ContainsAny(word, "\n\r\x00") {
			return nil, errs.New(errs.Invalid, "ssh can't be told of the path %q, which holds a line break", word)
		}
	}
	return self, nil
}

// with puts the verb after the path.
func (s selfCommand) with(verb string) []string {
	return append([]string{s[0], verb}, s[1:]...)
}

// shell quotes the command for ProxyCommand, which expands % and goes to a shell as `exec …`.
func (s selfCommand) shell(verb string) string {
	words := s.with(verb)
	for i, w := range words {
		words[i] = "'" + strings.ReplaceAll(percent(w), "'", `'\''`) + "'"
	}
	return strings.Join(words, " ")
}

// argv quotes the command for KnownHostsCommand, which ssh splits by rules of its own and
// then expands.
func (s selfCommand) argv(verb string) string {
	words := s.with(verb)
	for i, w := range words {
		words[i] = configQuote(w)
	}
	return strings.Join(words, " ")
}

// configQuote quotes a word of ssh_config in which % is expanded.
func configQuote(w string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(percent(w)) + `"`
}

func percent(s string) string { return strings.ReplaceAll(s, "%", "%%") }
