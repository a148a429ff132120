package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"banger/api"
)

// selection is which VMs a command is about where they are not named one by one.
type selection struct {
	all     bool
	filters []string
}

func (s *selection) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.all, "all", false, "all VMs that this makes sense for")
	s.filterFlag(cmd)
}

func (s *selection) filterFlag(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&s.filters, "filter", nil, "VMs with `key=value`: state=stopped, image=debian; several must all hold")
}

// used tells whether VMs are selected rather than named.
func (s *selection) used() bool { return s.all || len(s.filters) > 0 }

// states are those that a VM can be in.
var states = []api.State{api.StateCreating, api.StateRunning, api.StatePaused, api.StateStopping, api.StateStopped, api.StateFailed, api.StateDeleting, api.StateSuspended}

// match returns a test of whether a VM is selected; bad usage if a filter makes no sense.
func (s *selection) match() (func(api.VM) bool, error) {
	var tests []func(api.VM) bool
	for _, f := range s.filters {
		key, value, ok := strings.Cut(f, "=")
		switch {
		case !ok || value == "":
			return nil, badUsage("a filter is written key=value, not %s", shown(f))
		case key == "state" && !slices.Contains(states, api.State(value)):
			return nil, badUsage("no VM is ever in the state %s", shown(value))
		case key == "state":
			tests = append(tests, func(vm api.VM) bool { return vm.State == api.State(value) })
		case key == "image":
			tests = append(tests, func(vm api.VM) bool { return vm.Image == value })
		default:
			return nil, badUsage("VMs are filtered by state and image, not by %s", shown(key))
		}
	}
	return func(vm api.VM) bool {
		return !slices.ContainsFunc(tests, func(holds func(api.VM) bool) bool { return !holds(vm) })
	}, nil
}
