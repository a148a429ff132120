// Command banger starts sandboxes that are real virtual machines and runs commands in them.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"banger/internal/cli"
)

// Set by the linker.
var (
	version = "devel"
	commit  = "" // of the source
	date    = "" // of that commit
)

func main() {
	debug.SetGCPercent(400) // it is gone before that much garbage is worth collecting
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
