package cli

import (
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) networkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "network",
		Short:   "Show the bridge that VMs are on, or move it to another subnet",
		Example: "  banger network show",
	}
	group(cmd)
	cmd.AddCommand(a.networkShowCommand(), a.networkMoveCommand())
	return cmd
}

func (a *app) networkShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show the bridge, its subnet, who is on it, and what may pass",
		Example: "  banger network show",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			n, err := client.Network(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.json(n)
			}
			return a.showNetwork(n)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as a JSON object")
	return cmd
}

func (a *app) showNetwork(n api.NetworkInfo) error {
	if n.Available {
		subnet := "no subnet yet; one is chosen with the first VM"
		if n.Subnet != "" {
			subnet = n.Subnet + ", the host is " + n.Gateway
		}
		a.print("bridge %s: %s\n", shown(n.Bridge), shown(subnet))
	} else {
		a.print("no bridge can be had here\n")
	}
	for _, p := range n.Problems {
		a.print("problem: %s\n", shown(p))
	}
	if len(n.Leases) > 0 {
		a.print("\n")
		if err := a.table(leaseRows(n.Leases)); err != nil {
			return err
		}
	}
	if len(n.Rules) > 0 {
		a.print("\nwhat the packet filter does:\n")
	}
	for _, r := range n.Rules {
		a.print("  %s\n", shown(r))
	}
	return nil
}

func leaseRows(leases []api.Lease) [][]string {
	rows := [][]string{{"NAME", "STATE", "MODE", "IP", "MAC", "FORWARDS", "NOTES"}}
	for _, l := range leases {
		var forwards, notes []string
		for _, f := range l.Forwards {
			forwards = append(forwards, net.JoinHostPort(f.HostIP, strconv.Itoa(f.HostPort))+"→"+strconv.Itoa(f.GuestPort)+"/"+f.Protocol)
		}
		if l.Isolated {
			notes = append(notes, "isolated")
		}
		if l.HostAccess {
			notes = append(notes, "host access")
		}
		rows = append(rows, []string{l.Name, string(l.State), l.Mode, l.IP, l.MAC, strings.Join(forwards, " "), strings.Join(notes, ", ")})
	}
	return rows
}

func (a *app) networkMoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "move [SUBNET]",
		Short: "Give all VMs on the bridge addresses of another subnet",
		Long: `Move the bridge to another subnet, one that overlaps no network of the host if none is
given. VMs that run are given their new addresses at once; connections to the old ones end.`,
		Example: "  banger network move 10.86.0.0/22",
		Args:    args(0, 1, "one subnet"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var req api.MoveNetwork
			if len(args) > 0 {
				if req.Subnet = args[0]; req.Subnet == "" {
					return badUsage("an empty subnet is none")
				}
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			p := a.progress("")
			err = client.MoveNetwork(cmd.Context(), req, p.event)
			p.close()
			if err != nil {
				return err
			}
			n, err := client.Network(cmd.Context())
			if err != nil {
				return err
			}
			a.print("%s\n", shown(n.Subnet))
			return nil
		},
	}
}
