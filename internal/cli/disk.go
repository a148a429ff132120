package cli

import (
	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) diskCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "disk",
		Short:   "Show what takes the host's disk, and give back what is not needed",
		Example: "  banger disk usage",
	}
	group(cmd)
	cmd.AddCommand(a.diskUsageCommand(), a.diskTrimCommand())
	return cmd
}

func (a *app) diskUsageCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "usage",
		Short: "List what VMs, images and kernels take of the host's disk",
		Long: `List what each VM, image and kernel takes of the host's disk: for itself, which its removal
would give back; shared with others; and, of running VMs, what the guest has freed and the
host still holds, which banger disk trim gives back.`,
		Example: "  banger disk usage",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			uses, err := client.DiskUsage(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.json(append([]api.DiskUse{}, uses...))
			}
			return a.table(useRows(uses))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as a JSON array")
	return cmd
}

// useRows lists the uses and their sum, in which what VMs share counts once: as the image's.
func useRows(uses []api.DiskUse) [][]string {
	rows := [][]string{{"KIND", "NAME", "DRIVER", "EXCLUSIVE", "SHARED", "FREED"}}
	var exclusive, shared int64
	for _, u := range uses {
		exclusive += u.ExclusiveBytes
		if u.Kind != "vm" {
			shared += u.SharedBytes
		}
		freed := ""
		if u.FreedBytes != nil {
			freed = bytesText(*u.FreedBytes)
		}
		rows = append(rows, []string{u.Kind, u.Name, u.Driver, bytesText(u.ExclusiveBytes), bytesText(u.SharedBytes), freed})
	}
	return append(rows, []string{"all", "", "", bytesText(exclusive), bytesText(shared), ""})
}

func (a *app) diskTrimCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "trim REF…",
		Short:             "Give back to the host what running VMs' filesystems do not need",
		Example:           "  banger disk trim web",
		Args:              refs(-1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), refs, func(ref string, _ func(api.Event)) (string, error) {
				t, err := client.Trim(cmd.Context(), ref)
				return ref + ": " + bytesText(t.HostBytes) + " given back", err
			})
		},
	}
}
