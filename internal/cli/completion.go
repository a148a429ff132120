package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"banger/api"
)

// builtins adds cobra's own commands, which need no configuration.
func builtins(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd("completion") // only added for a command line that asks for it
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Annotations = map[string]string{noConfig: ""}
		case "completion":
			cmd.Short = "Print the completion script of a shell"
			cmd.Long = ""
			cmd.Example = "  source <(banger completion bash)"
			group(cmd)
			for _, shell := range cmd.Commands() {
				shell.Annotations = map[string]string{noConfig: ""}
			}
		}
	}
}

// completeVMs offers the names of VMs. It starts no daemon: what has none has no VM up.
func (a *app) completeVMs(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	files := cobra.ShellCompDirectiveNoFileComp
	if cmd.Name() == "cp" {
		files = cobra.ShellCompDirectiveDefault | cobra.ShellCompDirectiveNoSpace
	}
	client := api.New(a.config.Socket)
	vms, err := client.VMs(cmd.Context())
	if err != nil {
		return nil, files
	}
	var names []string
	for _, vm := range vms {
		name := shown(vm.Name)
		if cmd.Name() == "cp" {
			name += ":"
		}
		if strings.HasPrefix(name, begun) {
			names = append(names, name+"\t"+shown(string(vm.State)))
		}
	}
	return names, files
}
