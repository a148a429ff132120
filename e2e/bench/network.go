package main

import (
	"fmt"
	"os"
)

// netStartCost measures what a place on the bridge adds to `banger run`. The host's part is
// a millisecond or two; the rest is the guest's driver and what two starts differ anyway.
func netStartCost(b *bench) ([]Figure, error) {
	if os.Geteuid() != 0 {
		fmt.Println("SKIP: net_start_cost: bridge networking takes root")
		return nil, nil
	}
	run := func(net string) func() error {
		return func() error {
			_, err := b.banger("run", "--rm", "--image", "tiny", "--net", net, "--wait", "agent", "--", "true")
			return err
		}
	}
	const n = 15
	with, without, err := inTurn(n, run("bridge"), run("none"))
	if err != nil {
		return nil, err
	}
	note := fmt.Sprintf("%.3f s with --net bridge against %.3f s with --net none", with, without)
	return []Figure{{"net_start_cost", (with - without) * 1000, "ms", n, 0, note}}, nil
}
