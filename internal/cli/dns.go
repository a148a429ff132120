package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) dnsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "dns",
		Short:   "Show the names of VMs, and how they are made known",
		Example: "  banger dns status",
	}
	group(cmd)
	cmd.AddCommand(a.dnsStatusCommand(), a.dnsListCommand())
	return cmd
}

func (a *app) dnsStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell how names are served and made known to this host's programs",
		Long: `Tell how names are served and made known. A running VM that the host can reach is NAME.vm,
and so is whatever is below that name. Programs of this host learn of it by systemd-resolved,
by lines in /etc/hosts, or by a command of yours; dns_publish in the config file chooses, and
dns_exec names the command. If they can't, the exit code is 1.`,
		Example: "  banger dns status",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			d, err := client.DNS(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				err = a.json(d)
			} else {
				err = a.table(dnsRows(d))
			}
			if err == nil && d.Problem != "" {
				err = exitCode(exitFailure)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as a JSON object")
	return cmd
}

func dnsRows(d api.DNS) [][]string {
	rows := [][]string{
		{"names", strconv.Itoa(d.Records) + " below ." + d.Domain},
		{"published", "by " + d.Publisher + ": " + d.Why},
	}
	if d.Problem != "" {
		rows = append(rows, []string{"problem", d.Problem})
	}
	if d.Hint != "" {
		rows = append(rows, []string{"hint", d.Hint})
	}
	for _, l := range d.Listeners {
		text := "for " + l.For + " on " + l.Address
		if l.Problem != "" {
			text = "not " + text + ": " + l.Problem
		}
		rows = append(rows, []string{"served", text})
	}
	return append(rows, []string{"forwarded", strings.Join(d.Upstreams, ", ")})
}

func (a *app) dnsListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List the names that there are now",
		Example: "  banger dns ls",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			all, err := client.DNSRecords(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.json(append([]api.DNSRecord{}, all...))
			}
			rows := [][]string{{"NAME", "IP", "VM"}}
			for _, r := range all {
				rows = append(rows, []string{r.Name, r.IP, r.VM})
			}
			return a.table(rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as a JSON array")
	return cmd
}
