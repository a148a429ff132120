// Command banger-guest is the first process of a virtual machine, and its guest agent.
package main

import (
	"os"

	"banger/internal/guestd"
)

func main() { os.Exit(guestd.Main(os.Args)) }
