package cli

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) poolCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pool",
		Short: "Look at the VMs that are kept ready",
		Long: `VMs of the images that pool in the config file names are kept started and paused. Who asks
for one of those, and for nothing else of the machine, gets one that is ready instead of a
start. What they take of memory together is bounded by pool_memory.`,
		Example: "  banger pool ls",
	}
	group(cmd)
	cmd.AddCommand(listCommand(a, "pools", (*api.Client).Pool, poolRows))
	return cmd
}

func poolRows(all []api.PoolImage) [][]string {
	rows := [][]string{{"IMAGE", "READY", "MEM", "TROUBLE"}}
	for _, p := range all {
		rows = append(rows, []string{p.Image, fmt.Sprintf("%d of %d", p.Ready, p.Wanted), bytesText(p.MemoryBytes), cmp.Or(p.Trouble, "-")})
	}
	return rows
}
