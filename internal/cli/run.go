package cli

import (
	"cmp"
	"context"
	"slices"

	"github.com/spf13/cobra"

	"banger/api"
)

// runOptions are the flags of run that are not about the machine.
type runOptions struct {
	exec   api.Exec
	remove bool
	detach bool
}

func (a *app) runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:                   "run [flags] [--] [CMD…]",
		DisableFlagsInUseLine: true,
		Short:                 "Run a command in a new VM; without one, the image's own or a login shell",
		Long: `Make a VM, start it and run a command in it, as exec does, with the same exit codes.
Of a container image, user, working directory and, where no command is given, entrypoint are
the image's own.
The VM stays unless --rm is given.`,
		Example:     "  banger run --rm -- make test",
		Args:        args(0, -1, ""),
		Annotations: guestsCode,
	}
	req := a.machineFlags(cmd)
	a.commandFlags(cmd, &o.exec)
	f := cmd.Flags()
	f.BoolVar(&o.remove, "rm", false, "remove the VM when the command ends; with -d, when the VM stops")
	f.BoolVarP(&o.detach, "detach", "d", false, "leave the command to run on, its output in the VM's log, and print the VM's name")
	f.StringVar(&req.Wait, "wait", "", waitUsage)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if o.detach && o.exec.TTY {
			return badUsage("-d and -t exclude each other: a command left to itself has no terminal")
		}
		o.exec.Argv = command(args)
		if !cmd.Flags().Changed("tty") && !o.detach {
			o.exec.TTY = a.interactive(o.exec.Argv)
		}
		req.Start = true
		client, err := a.connect(cmd.Context())
		if err != nil {
			return err
		}
		if err := followImage(cmd.Context(), client, req.Image, &o.exec); err != nil {
			return err
		}
		if o.detach {
			return a.runDetached(cmd.Context(), client, *req, o)
		}
		return a.run(cmd.Context(), client, *req, o)
	}
	return cmd
}

// followImage fills in what a container image says of the command that nobody named, and of
// where and as whom it runs.
func followImage(ctx context.Context, client *api.Client, name string, x *api.Exec) error {
	if name == "" { // the default is no container image
		return nil
	}
	image, err := client.Image(ctx, name)
	if err != nil || image.Config == nil {
		return err
	}
	c := image.Config
	if len(x.Argv) == 0 {
		x.Argv = slices.Concat(c.Entrypoint, c.Cmd)
	}
	x.User, x.Dir = cmp.Or(x.User, c.User), cmp.Or(x.Dir, c.WorkDir)
	return nil
}

// boot makes and starts a VM. An interrupt leaves none, even one that came too late for
// the daemon to roll back.
func (a *app) boot(ctx context.Context, client *api.Client, req api.CreateVM) (api.VM, error) {
	p := a.progress("")
	defer p.close()
	vm, err := client.CreateVM(ctx, req, p.event)
	if err != nil || ctx.Err() == nil {
		return vm, err
	}
	if _, err := client.RemoveVM(context.WithoutCancel(ctx), vm.ID, true, nil); err != nil {
		a.report(err)
	}
	return vm, ctx.Err()
}

// run starts a VM and runs a command in it. With --rm a lease makes sure that the VM goes
// even if this process is killed; at an orderly end it is removed, and gone, before run
// returns.
func (a *app) run(ctx context.Context, client *api.Client, req api.CreateVM, o runOptions) error {
	if o.remove {
		id, lease, err := client.Lease(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		defer lease.Close()
		req.Lease = id
	}
	vm, err := a.boot(ctx, client, req)
	if err != nil {
		return err
	}
	err = a.exec(ctx, client, vm.ID, o.exec)
	if !o.remove {
		if isTerminal(a.Stderr) {
			a.note("%s runs on; stop it with `banger stop %s`", shown(vm.Name), shown(vm.Name))
		}
		return err
	}
	_, gone := client.RemoveVM(context.WithoutCancel(ctx), vm.ID, true, nil)
	if gone == nil || notFound(gone) {
		return err
	}
	if err == nil {
		return gone
	}
	a.report(gone)
	return err
}

// runDetached starts a VM, starts the command in it and leaves both.
func (a *app) runDetached(ctx context.Context, client *api.Client, req api.CreateVM, o runOptions) error {
	req.AutoRemove = o.remove
	vm, err := a.boot(ctx, client, req)
	if err != nil {
		return err
	}
	a.print("%s\n", shown(vm.Name))
	if len(o.exec.Argv) == 0 {
		return nil
	}
	o.exec.Detach = true
	exit, err := client.Exec(ctx, vm.ID, o.exec, api.ExecIO{})
	if err != nil {
		return err
	}
	return a.ended(exit)
}
