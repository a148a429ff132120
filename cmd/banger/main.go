// Command banger starts sandboxes that are real virtual machines and runs commands in them.
package main

import (
	"context"
	"os"

	"banger/internal/cli"
)

// version is set by the linker.
var version = "devel"

func main() {
	os.Exit(cli.Program{
		Args:    os.Args[1:],
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Env:     os.Environ(),
		Version: version,
	}.Run(context.Background()))
}
