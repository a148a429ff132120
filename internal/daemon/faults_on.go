//go:build faults

package daemon

import (
	"banger/internal/faults"
	"banger/internal/host"
	"banger/internal/vm"
)

// withFaults puts the host's door for faults around everything that a manager does.
func withFaults(c vm.Config) vm.Config { return faults.Behind(c, host.Fault) }
