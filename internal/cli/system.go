package cli

import (
	"bufio"
	"context"
	"strings"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) systemCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "system",
		Short:   "Compare the host with what banger knows, set it right, and install the daemon",
		Example: "  banger system census",
	}
	group(cmd)
	cmd.AddCommand(a.censusCommand(), a.verifyCommand(), a.sweepCommand(), a.systemInstallCommand(), a.systemUninstallCommand())
	return cmd
}

func (a *app) censusCommand() *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:   "census",
		Short: "List what is on the host of VMs and should not be, or is not and should be",
		Long: `Look for everything of banger's on the host - processes, sockets, directories, mounts,
loop devices, device-mapper targets, network interfaces, nftables, forwarding and lines of
the hosts file - and compare it with the VMs that banger knows.
Differences are listed, and make the exit code 1.`,
		Example: "  banger system census --all",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			found, err := client.Census(cmd.Context())
			if err != nil {
				return err
			}
			wrong := problems(found)
			list := wrong
			if all {
				list = found
			}
			switch {
			case asJSON:
				err = a.json(append([]api.Finding{}, list...))
			case len(list) > 0:
				err = a.table(findingRows(list))
			}
			if err != nil {
				return err
			}
			if len(wrong) > 0 {
				return exitCode(exitFailure)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as a JSON array")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list also what is as it should be")
	return cmd
}

func problems(found []api.Finding) (wrong []api.Finding) {
	for _, f := range found {
		if f.Problem != "" {
			wrong = append(wrong, f)
		}
	}
	return wrong
}

func findingRows(found []api.Finding) [][]string {
	rows := [][]string{{"KIND", "OBJECT", "VM", "PROBLEM"}}
	for _, f := range found {
		rows = append(rows, []string{f.Kind, f.Name, f.VM, f.Problem})
	}
	return rows
}

func (a *app) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "verify",
		Short:   "Check images and kernels against their checksums, and take the census",
		Example: "  banger system verify",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			bad := false
			err = client.Verify(cmd.Context(), func(v api.Verdict) bool {
				if v.Problem == "" {
					a.print("ok       %s\n", shown(v.What))
					return true
				}
				bad = true
				a.print("damaged  %s: %s\n", shown(v.What), shown(v.Problem))
				if v.Hint != "" {
					a.print("%8s %s\n", "", shown(v.Hint))
				}
				return true
			})
			if err != nil {
				return err
			}
			found, err := client.Census(cmd.Context())
			if err != nil {
				return err
			}
			for _, f := range problems(found) {
				bad = true
				a.print("stray    %s %s: %s\n", shown(f.Kind), shown(f.Name), shown(f.Problem))
			}
			if bad {
				return exitCode(exitFailure)
			}
			return nil
		},
	}
}

func (a *app) sweepCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove what the census finds that nothing explains and that is proven banger's",
		Long: `Remove what lies in the directories of VMs that do not exist: machines, sockets, devices
and files. What is not proven banger's stays, and the census goes on to name it.`,
		Example: "  banger system prune -y",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			client, err := a.connect(ctx)
			if err != nil {
				return err
			}
			found, err := client.Census(ctx)
			if err != nil {
				return err
			}
			wrong := problems(found)
			if len(wrong) == 0 {
				return nil
			}
			if !yes {
				if err := a.table(findingRows(wrong)); err != nil {
					return err
				}
			}
			if err := a.ask(ctx, yes, "remove of these what is proven banger's?"); err != nil {
				return err
			}
			gone, err := client.Sweep(ctx)
			for _, f := range gone {
				a.print("removed %s %s\n", shown(f.Kind), shown(f.Name))
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) pruneCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:     "prune",
		Short:   "Remove all stopped VMs, and files that nothing needs any more",
		Example: "  banger prune -y",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			client, err := a.connect(ctx)
			if err != nil {
				return err
			}
			vms, err := client.VMs(ctx)
			if err != nil {
				return err
			}
			var stopped []string
			for _, vm := range vms {
				if vm.State == api.StateStopped {
					stopped = append(stopped, vm.ID)
					a.note("VM %s, stopped, %s", shown(vm.Name), bytesText(vm.Disk.AllocatedBytes))
				}
			}
			files, err := client.Prune(ctx, true)
			if err != nil {
				return err
			}
			for _, f := range files {
				a.note("%s, %s", shown(f.Path), bytesText(f.Bytes))
			}
			if len(stopped)+len(files) == 0 {
				return nil
			}
			if err := a.ask(ctx, yes, "remove these, with all that is on the disks of the VMs?"); err != nil {
				return err
			}
			if files, err = client.Prune(ctx, false); err != nil {
				return err
			}
			for _, f := range files {
				a.print("%s\n", shown(f.Path))
			}
			return a.each(ctx, stopped, func(ref string, progress func(api.Event)) (string, error) {
				vm, err := client.RemoveVM(ctx, ref, false, progress) // one that was started meanwhile stays
				return vm.Name, err
			})
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// ask has a person confirm what can't be undone. Where nobody can be asked it has to be
// settled by yes.
func (a *app) ask(ctx context.Context, yes bool, question string) error {
	if yes {
		return nil
	}
	if !isTerminal(a.Stdin) {
		return badUsage("nobody is there to be asked; -y says yes")
	}
	a.note("%s [y/N]", question)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.Stdin).ReadString('\n') // an end without a word is a no
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case s := <-answer:
		if s == "y" || s == "yes" {
			return nil
		}
		return exitCode(exitFailure)
	case <-ctx.Done():
		return ctx.Err()
	}
}
