//go:build !faults

package daemon

import "banger/internal/vm"

// withFaults is where programs built for tests put doors before and behind all that a
// manager does.
func withFaults(c vm.Config) vm.Config { return c }
