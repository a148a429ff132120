package cli

import (
	"cmp"
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot REF [NAME]",
		Short: "Keep the memory and the disk of a VM as they are, and print the name",
		Long: `Keep what a VM's machine and its disk are at this moment. A VM that runs halts while it is
saved, and goes on; its connections stay. Any number of VMs can go on from there: banger run
--from NAME. The files hold whatever secrets the guest had in its memory, and only their owner
reads them.`,
		Example: "  banger snapshot web ready\n  banger run --from ready",
		Args: func(cmd *cobra.Command, list []string) error {
			if err := args(1, 2, "the VM and, after that, a name for the snapshot")(cmd, list); err != nil {
				return err
			}
			return refs(1)(cmd, list[:1])
		},
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			var req api.TakeSnapshot
			if len(args) > 1 {
				if args[1] == "" {
					return badUsage("an empty name names nothing")
				}
				req.Name = args[1]
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			p := a.progress("")
			p.event(api.Event{Stage: "saving the machine"})
			s, err := client.TakeSnapshot(cmd.Context(), args[0], req)
			p.close()
			if err != nil {
				return err
			}
			a.print("%s\n", shown(s.Name))
			return nil
		},
	}
	cmd.AddCommand(listCommand(a, "snapshots", (*api.Client).Snapshots, snapshotRows), inspectCommand(a, "snapshot", "ready", (*api.Client).Snapshots, func(x api.Snapshot) string { return x.Name }),
		removeCommand(a, "snapshot", (*api.Client).RemoveSnapshot), a.snapshotPruneCommand())
	return cmd
}

func (a *app) snapshotPruneCommand() *cobra.Command {
	var yes bool
	var older time.Duration
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove the snapshots that nothing needs any more",
		Long: `Remove the snapshots that no VM waits to go on from and that no other snapshot lies on; VMs
that have gone on from one need it no more.`,
		Example: "  banger snapshot prune --older-than 168h -y",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			client, err := a.connect(ctx)
			if err != nil {
				return err
			}
			all, err := client.Snapshots(ctx)
			if err != nil {
				return err
			}
			var names []string
			for _, s := range all {
				if len(s.UsedBy) == 0 && time.Since(s.CreatedAt) >= older {
					names = append(names, s.Name)
					a.note("snapshot %s of %s, %s", shown(s.Name), shown(cmp.Or(s.Of, "a VM that can't be told any more")), bytesText(s.Bytes))
				}
			}
			if len(names) == 0 {
				return nil
			}
			if err := a.ask(ctx, yes, "remove these, with what the VMs had in memory and on their disks?"); err != nil {
				return err
			}
			return a.each(ctx, names, func(name string, _ func(api.Event)) (string, error) { return name, client.RemoveSnapshot(ctx, name) })
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().DurationVar(&older, "older-than", 0, "leave those that are younger")
	return cmd
}

func snapshotRows(all []api.Snapshot) [][]string {
	rows := [][]string{{"NAME", "OF", "IMAGE", "CPUS", "MEM", "DISK", "NET", "SIZE", "AGE", "USED BY"}}
	for _, s := range all {
		if s.Damaged != "" {
			rows = append(rows, []string{s.Name, "-", "damaged", "-", "-", "-", "-", bytesText(s.Bytes), "-", strings.Join(s.UsedBy, ",")})
			continue
		}
		rows = append(rows, []string{s.Name, s.Of, s.Image, strconv.Itoa(s.CPUs), bytesText(s.MemoryBytes), s.DiskDriver + " " + bytesText(s.DiskBytes),
			s.Net, bytesText(s.Bytes), ago(time.Since(s.CreatedAt)), strings.Join(s.UsedBy, ",")})
	}
	return rows
}

func (a *app) forkCommand() *cobra.Command {
	req := api.ForkVM{Count: 1}
	cmd := &cobra.Command{
		Use:   "fork REF",
		Short: "Make live copies of a running VM, and print their names",
		Long: `Make VMs that go on where a VM is now, each with its memory and its disk and with an identity
of its own: name, addresses, machine id, host key. The VM itself halts only while it is saved,
and its connections stay. If one copy can't be made none is.`,
		Example:           "  banger fork -n 3 web",
		Args:              refs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			p := a.progress("")
			p.event(api.Event{Stage: "saving the machine and starting its copies"})
			copies, err := client.ForkVM(cmd.Context(), args[0], req)
			p.close()
			if err != nil {
				return err
			}
			for _, vm := range copies {
				a.print("%s\n", shown(vm.Name))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.IntVarP(&req.Count, "count", "n", 1, "how many copies")
	f.StringVar(&req.Name, "name", "", "name of the copy; of several the beginning, with a number behind it")
	f.VarP(envFlag{&req.Env, a.lookupEnv}, "env", "e", "variable of every command in the copies; K alone takes it from here")
	f.BoolVar(&req.AutoRemove, "rm", false, "remove each copy when it stops")
	return cmd
}

func (a *app) suspendCommand() *cobra.Command {
	return a.verbCommand("suspend", "Keep VMs in files, to go on where they are; they take no memory until then", "banger suspend web", hasMachine,
		func(ctx context.Context, client *api.Client, ref string, progress func(api.Event)) (api.VM, error) {
			return client.SuspendVM(ctx, ref, progress)
		})
}
