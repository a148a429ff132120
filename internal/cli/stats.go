package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
)

// statsInterval is the time between two looks at what VMs take.
const statsInterval = time.Second

func (a *app) statsCommand() *cobra.Command {
	var asJSON, once bool
	cmd := &cobra.Command{
		Use:   "stats [REF…]",
		Short: "Show what running VMs take and do; without REF, all of them",
		Long: `Show what running VMs take of the host and what their guests say of themselves. On a
terminal that goes on until interrupted; elsewhere it is told once.`,
		Example:           "  banger stats web",
		Args:              func(_ *cobra.Command, refs []string) error { return named(refs) },
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			ctx := cmd.Context()
			client, err := a.connect(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				now, err := a.sample(ctx, client, refs)
				if err != nil {
					return err
				}
				return a.json(now)
			}
			return left(ctx, a.watchStats(ctx, client, refs, !once && isTerminal(a.Stdout)))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "the counters as they are now, as a JSON array")
	cmd.Flags().BoolVar(&once, "no-stream", false, "tell once, also on a terminal")
	return cmd
}

// sample asks how the VMs are. Where none are named, one that stops meanwhile is left out.
func (a *app) sample(ctx context.Context, client *api.Client, refs []string) ([]api.Stats, error) {
	all := []api.Stats{}
	asked := refs
	if len(refs) == 0 {
		vms, err := client.VMs(ctx)
		if err != nil {
			return nil, err
		}
		for _, vm := range vms {
			if hasMachine(vm.State) {
				asked = append(asked, vm.ID)
			}
		}
	}
	for _, ref := range unique(asked) {
		s, err := client.Stats(ctx, ref)
		if err != nil && len(refs) == 0 && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// watchStats prints a table of what VMs did between two samples, once or again and again.
func (a *app) watchStats(ctx context.Context, client *api.Client, refs []string, live bool) error {
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	before, err := a.sample(ctx, client, refs)
	for err == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		var now []api.Stats
		if now, err = a.sample(ctx, client, refs); err != nil {
			break
		}
		if live {
			a.print("\x1b[H\x1b[2J") // home, clear
		}
		if err = a.table(statsRows(before, now)); err != nil || !live {
			break
		}
		before = now
	}
	return err
}

func statsRows(before, now []api.Stats) [][]string {
	rows := [][]string{{"NAME", "CPU", "MEM", "GUEST MEM", "DISK", "READ/WRITTEN", "NET IN/OUT", "LOAD"}}
	earlier := map[string]api.Stats{}
	for _, s := range before {
		earlier[s.VM] = s
	}
	for _, s := range now {
		cpu, guest, net, load := "", "", "", ""
		if was, ok := earlier[s.VM]; ok && s.At.After(was.At) {
			cpu = fmt.Sprintf("%.1f%%", 100*max(0, s.CPUSeconds-was.CPUSeconds)/s.At.Sub(was.At).Seconds())
		}
		if g := s.Guest; g != nil {
			guest = bytesText(g.MemoryTotalBytes-g.MemoryAvailableBytes) + "/" + bytesText(g.MemoryTotalBytes)
			net = bytesText(g.RxBytes) + "/" + bytesText(g.TxBytes)
			load = fmt.Sprintf("%.2f", g.Load1)
		}
		if b := s.Balloon; b != nil && s.Guest == nil { // the agent does not answer, and the kernel does
			guest = bytesText(b.TotalBytes-b.AvailableBytes) + "/" + bytesText(b.TotalBytes)
		}
		rows = append(rows, []string{
			s.Name, cpu, bytesText(s.PSSBytes), guest, bytesText(s.DiskBytes),
			bytesText(s.ReadBytes) + "/" + bytesText(s.WriteBytes), net, load,
		})
	}
	return rows
}
