// Command banger starts sandboxes that are real virtual machines and runs commands in them.
package main

import (
	"context"
	"os"

	"banger/internal/cli"
)

// Set by the linker.
var (
	version = "devel"
	commit  = "" // of the source
	date    = "" // of that commit
)

func main() {
	os.Exit(cli.Program{
		Args:    os.Args[1:],
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Env:     os.Environ(),
		Version: version,
		Commit:  commit,
		Date:    date,
	}.Run(context.Background()))
}
