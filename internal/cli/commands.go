package cli

import (
	"io"

	"github.com/spf13/cobra"
)

// Commands is the tree of all commands, for documentation to be made of. None can be run.
func Commands() *cobra.Command {
	a := &app{Program: Program{Stdout: io.Discard, Stderr: io.Discard}, out: &output{w: io.Discard}}
	root := a.root()
	root.DisableAutoGenTag = true
	return root
}
