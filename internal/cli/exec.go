package cli

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/errs"
)

func (a *app) execCommand() *cobra.Command {
	var x api.Exec
	cmd := &cobra.Command{
		Use:                   "exec [flags] REF [--] [CMD…]",
		DisableFlagsInUseLine: true,
		Short:                 "Run a command in a VM; without one, a login shell",
		Long: `Run a command in a VM, with banger's standard input, output and error, and return its
exit code: 128 and the number of the signal that ended it, 127 where it is not found,
126 where it can't be run, 125 where banger failed. Signals go on to the command; three
interrupts within two seconds leave it. Without a command it is a login shell.`,
		Example:           "  tar c . | banger exec -w /srv web -- tar x",
		Args:              refThen,
		ValidArgsFunction: a.completeVMs,
		Annotations:       guestsCode,
		RunE: func(cmd *cobra.Command, args []string) error {
			x.Argv = command(args[1:])
			if !cmd.Flags().Changed("tty") {
				x.TTY = a.interactive(x.Argv)
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			return a.exec(cmd.Context(), client, args[0], x)
		},
	}
	a.commandFlags(cmd, &x)
	cmd.Flags().VarP(envFlag{&x.Env, a.lookupEnv}, "env", "e", "variable of the command; K alone takes it from here")
	return cmd
}

// commandFlags gives cmd the flags of a command that runs in a VM. Flags end at the first
// argument: what follows belongs to the command.
func (a *app) commandFlags(cmd *cobra.Command, x *api.Exec) {
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&x.TTY, "tty", "t", false, "give the command a terminal; the default for a shell on a terminal")
	f.StringVarP(&x.User, "user", "u", "", "`user` that the command runs as (root)")
	f.StringVarP(&x.Dir, "workdir", "w", "", "`directory` that it starts in (the user's home)")
	f.BoolP("interactive", "i", false, "does nothing: standard input is always passed on")
	f.Lookup("interactive").Hidden = true
}

// command is what follows the reference, without the -- that may stand before it.
func command(args []string) []string {
	if len(args) > 0 && args[0] == "--" {
		return args[1:]
	}
	return args
}

// interactive tells whether argv, on these streams, is a shell for a person.
func (a *app) interactive(argv []string) bool {
	return len(argv) == 0 && isTerminal(a.Stdin) && isTerminal(a.Stdout)
}

// exec runs a command in the VM on banger's own streams. It returns nil or the command's
// exit code, or what went wrong on banger's side. Signals go to the command: ctx's own
// end, which one of them causes, does not count.
func (a *app) exec(ctx context.Context, client *api.Client, ref string, x api.Exec) error {
	ctx, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	streams := api.ExecIO{Stdin: a.Stdin, Stdout: a.Stdout, Stderr: a.Stderr}
	if !x.TTY { // the guest has a /dev/null too, and what does not travel costs nothing
		if isNull(a.Stdin) {
			streams.Stdin = nil
		}
		if isNull(a.Stdout) {
			streams.Stdout = nil
		}
		if isNull(a.Stderr) {
			streams.Stderr = nil
		}
	}
	if x.TTY {
		size := a.sizeOf()
		x.Size = &size
		x.Env = a.termEnv(x.Env)
		streams.Resize = a.resizes(ctx)
		restore, err := a.raw()
		if err != nil {
			return err
		}
		defer restore()
	}
	signals, stop := forward(func() { giveUp(interrupt(sigInt)) })
	defer stop()
	streams.Signals = signals
	exit, err := client.Exec(ctx, ref, x, streams)
	if errors.Is(err, api.ErrGone) { // it was ending as we came; nothing has been started
		if client, err = a.connect(ctx); err == nil {
			exit, err = client.Exec(ctx, ref, x, streams)
		}
	}
	if s, ok := interruption(ctx); ok {
		return exitCode(exitSignal + int(s))
	}
	if brokenPipe(err) && exit.Code != 0 {
		return exitCode(exit.Code)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return broken(ctx, client, ref)
	}
	if err != nil {
		return err
	}
	return a.ended(exit)
}

// ended makes the guest command's exit code banger's own.
func (a *app) ended(exit api.Exit) error {
	if exit.Message != "" {
		a.note("%s", shownLines(exit.Message))
	}
	if exit.Code == 0 {
		return nil
	}
	return exitCode(exit.Code)
}

// broken explains that the connection to a VM was cut while a command ran.
func broken(ctx context.Context, client *api.Client, ref string) error {
	vm, err := client.VM(ctx, ref)
	switch {
	case err != nil:
		return errs.New(errs.Unavailable, "the connection to the VM broke while the command ran").Because(err)
	case vm.State != api.StateRunning:
		failed := errs.New(errs.Unavailable, "%s is %s; the command ended with it", vm.Name, vm.State).Try("read `banger logs %s`", vm.Name)
		if vm.Error != "" {
			failed = failed.Because(errors.New(vm.Error))
		}
		return failed
	}
	return errs.New(errs.Unavailable, "the connection to %s broke while the command ran", vm.Name).
		Try("`banger inspect %s` tells how it is now, `banger logs %s` what its console said", vm.Name, vm.Name)
}

// termEnv adds TERM to the environment of a command with a terminal.
func (a *app) termEnv(env []string) []string {
	given := slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "TERM=") })
	if term := a.getenv("TERM"); term != "" && !given {
		return append([]string{"TERM=" + term}, env...)
	}
	return env
}
