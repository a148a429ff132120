package cli

import (
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *app) kernelCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "kernel", Short: "Look after the kernels that VMs boot", Example: "  banger kernel ls"}
	group(cmd)
	cmd.AddCommand(listCommand(a, "kernels", (*api.Client).Kernels, kernelRows), a.kernelImportCommand(),
		removeCommand(a, "kernel", (*api.Client).RemoveKernel))
	return cmd
}

func kernelRows(kernels []api.Kernel) [][]string {
	rows := [][]string{{"NAME", "VERSION", "ARCH", "MODULES", "SIZE", "ADDED", "USED BY"}}
	for _, k := range kernels {
		modules := "no"
		if k.Modules {
			modules = "yes"
		}
		rows = append(rows, []string{k.Name, k.Version, k.Arch, modules, bytesText(k.Bytes), ago(time.Since(k.CreatedAt)),
			strings.Join(k.UsedBy, ",")})
	}
	return rows
}

func (a *app) kernelImportCommand() *cobra.Command {
	var name, modules string
	cmd := &cobra.Command{
		Use:     "import VMLINUZ",
		Short:   "Take a kernel of the host's, to boot VMs with it",
		Example: "  banger kernel import /boot/vmlinuz-6.1.0-40-amd64 --modules /lib/modules/6.1.0-40-amd64",
		Args:    args(1, 1, "one kernel file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := api.ImportKernel{Name: name}
			var err error
			if req.Path, err = filepath.Abs(args[0]); err != nil {
				return err
			}
			if modules != "" {
				if req.ModulesDir, err = filepath.Abs(modules); err != nil {
					return err
				}
			}
			if req.Name == "" {
				req.Name = kernelName(args[0])
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			p := a.progress("")
			err = client.ImportKernel(cmd.Context(), req, p.event)
			p.close()
			if err != nil {
				return err
			}
			a.print("%s\n", shown(req.Name))
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name that it gets; made of the file's if none is given")
	cmd.Flags().StringVar(&modules, "modules", "", "its lib/modules/VERSION `directory`")
	return cmd
}

// kernelName makes a DNS label of a kernel's file name: 6-1-0-40-amd64 of vmlinuz-6.1.0-40-amd64.
func kernelName(path string) string {
	name := strings.ToLower(filepath.Base(path))
	for _, prefix := range []string{"vmlinuz-", "vmlinux-"} {
		name = strings.TrimPrefix(name, prefix)
	}
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, name)
	name = strings.Trim(name[:min(63, len(name))], "-")
	if name == "" {
		return "kernel"
	}
	return name
}
