package cli

import (
	"context"
	"math"

	"github.com/spf13/cobra"

	"banger/api"
)

// verb does something to one VM and returns its name.
type verb func(ctx context.Context, client *api.Client, ref string, progress func(api.Event)) (api.VM, error)

// verbCommand makes a command of a verb for any number of VMs. suits says in which states
// a VM must be for --all to mean it too.
func (a *app) verbCommand(use, short, example string, suits func(api.State) bool, do verb) *cobra.Command {
	var sel selection
	cmd := &cobra.Command{
		Use:     use + " REF…",
		Short:   short,
		Example: "  " + example,
		Args: func(cmd *cobra.Command, list []string) error {
			if sel.used() && len(list) > 0 {
				return badUsage("VMs are named or selected with --all and --filter, not both")
			}
			if sel.used() {
				return nil
			}
			return refs(-1)(cmd, list)
		},
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			ctx := cmd.Context()
			match, err := sel.match()
			if err != nil {
				return err
			}
			client, err := a.connect(ctx)
			if err != nil {
				return err
			}
			if sel.used() {
				vms, err := client.VMs(ctx)
				if err != nil {
					return err
				}
				for _, vm := range vms {
					if match(vm) && suits(vm.State) {
						refs = append(refs, vm.ID)
					}
				}
			}
			return a.each(ctx, refs, func(ref string, progress func(api.Event)) (string, error) {
				vm, err := do(ctx, client, ref, progress)
				return vm.Name, err
			})
		},
	}
	sel.flags(cmd)
	return cmd
}

// The states in which verbs make sense.
func hasMachine(s api.State) bool { return s == api.StateRunning || s == api.StatePaused }
func isAtRest(s api.State) bool {
	return s == api.StateStopped || s == api.StateFailed || s == api.StateSuspended
}
func isRunning(s api.State) bool { return s == api.StateRunning }
func isHalted(s api.State) bool  { return s == api.StatePaused || s == api.StateSuspended }
func anyState(api.State) bool    { return true }

func (a *app) startCommand() *cobra.Command {
	var req api.StartVM
	cmd := a.verbCommand("start", "Start stopped VMs, with their disks as they were left", "banger start web", isAtRest,
		func(ctx context.Context, client *api.Client, ref string, progress func(api.Event)) (api.VM, error) {
			return client.StartVM(ctx, ref, req, progress)
		})
	cmd.Aliases = []string{"restore"}
	bootFlags(cmd, &req.Boot)
	cmd.Flags().StringVar(&req.Wait, "wait", "", waitUsage)
	return cmd
}

func (a *app) stopCommand() *cobra.Command {
	var limit stopLimit
	cmd := a.verbCommand("stop", "Stop VMs; their disks stay", "banger stop -t 5 web", hasMachine,
		func(ctx context.Context, client *api.Client, ref string, progress func(api.Event)) (api.VM, error) {
			return client.StopVM(ctx, ref, limit.request(), progress)
		})
	limit.flag(cmd)
	return cmd
}

func (a *app) restartCommand() *cobra.Command {
	var limit stopLimit
	var start api.StartVM
	cmd := a.verbCommand("restart", "Stop VMs that run, and start them", "banger restart web", hasMachine,
		func(ctx context.Context, client *api.Client, ref string, progress func(api.Event)) (api.VM, error) {
			return client.RestartVM(ctx, ref, api.RestartVM{StopVM: limit.request(), StartVM: start}, progress)
		})
	limit.flag(cmd)
	cmd.Flags().StringVar(&start.Wait, "wait", "", waitUsage)
	return cmd
}

func (a *app) killCommand() *cobra.Command {
	return a.verbCommand("kill", "End VMs at once, as pulling the plug would; their disks stay", "banger kill web", hasMachine,
		func(ctx context.Context, client *api.Client, ref string, progress func(api.Event)) (api.VM, error) {
			return client.KillVM(ctx, ref, progress)
		})
}

func (a *app) pauseCommand() *cobra.Command {
	return a.verbCommand("pause", "Halt running VMs", "banger pause web", isRunning,
		func(ctx context.Context, client *api.Client, ref string, progress func(api.Event)) (api.VM, error) {
			return client.PauseVM(ctx, ref, progress)
		})
}

func (a *app) resumeCommand() *cobra.Command {
	return a.verbCommand("resume", "Let paused or suspended VMs go on", "banger resume web", isHalted,
		func(ctx context.Context, client *api.Client, ref string, progress func(api.Event)) (api.VM, error) {
			return client.ResumeVM(ctx, ref, progress)
		})
}

func (a *app) rmCommand() *cobra.Command {
	var force bool
	cmd := a.verbCommand("rm", "Remove VMs with their disks", "banger rm -f web", anyState,
		func(ctx context.Context, client *api.Client, ref string, progress func(api.Event)) (api.VM, error) {
			return client.RemoveVM(ctx, ref, force, progress)
		})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove running VMs too")
	return cmd
}

// stopLimit is the flag that bounds how long a guest may take to power off.
type stopLimit struct {
	seconds uint
	cmd     *cobra.Command
}

func (l *stopLimit) flag(cmd *cobra.Command) {
	l.cmd = cmd
	cmd.Flags().UintVarP(&l.seconds, "timeout", "t", 0, "`seconds` that the guest has to power off before it is killed; 0 kills it at once")
}

func (l *stopLimit) request() api.StopVM {
	if !l.cmd.Flags().Changed("timeout") {
		return api.StopVM{}
	}
	seconds := int(min(l.seconds, math.MaxInt32))
	return api.StopVM{TimeoutSeconds: &seconds}
}
