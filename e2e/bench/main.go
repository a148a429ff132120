// Command bench measures banger against bare baselines in the same run and writes what it
// finds as an array of {name, value, unit, n, baseline, note}. Ratios are of medians, taken
// in turn so that a busy host weighs on both sides alike.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"
)

// Figure is one measurement.
type Figure struct {
	Name     string  `json:"name"`
	Value    float64 `json:"value"`
	Unit     string  `json:"unit"` // ratio, s, ms, MiB, %, of 200…
	N        int     `json:"n"`    // samples on each side
	Baseline float64 `json:"baseline"`
	Note     string  `json:"note"`
}

func main() {
	out := flag.String("o", "build/bench.json", "file to write")
	long := flag.Bool("long", false, "do the measurements that take long instead")
	only := flag.String("only", "", "do only the measurement of this name")
	names := flag.Bool("serve-dns", false, "be the name server that is measured")
	flag.Parse()
	again, code, err := isolate()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: a network of its own:", err)
		code = 1
	}
	if again || err != nil {
		os.Exit(code)
	}
	if *names {
		if err := serveDNS(); err != nil {
			fmt.Fprintln(os.Stderr, "bench: serve DNS:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(*out, *long, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type measurement struct {
	name    string
	measure func(*bench) ([]Figure, error)
}

func run(out string, long bool, only string) (err error) {
	all := []measurement{
		{"disk_create", diskCreate}, {"cold_run", coldRun}, {"jail_cost", jailCost}, {"exec", execRatio}, {"cp", cpRatio},
		{"clones", clones}, {"guest_io", guestIO}, {"many_disks", manyDisks},
		{"idle_cpu", idleCPU}, {"daemon_rss", daemonRSS},
		{"import", importRatio},
		{"ls_1000", ls1000}, {"rm_ratio", rmRatio}, {"parallel_create", parallelCreate}, {"restart_recover_100", restartRecover},
		{"dns", dnsFigures}, {"net_start_cost", netStartCost}, {"image_build", imageBuild}, {"tap_throughput", tapThroughput},
		{"firecracker", firecrackerFigures}, {"warm", warmFigures}, {"warm_overhead", warmOverhead}, {"pool_claim", poolClaim}, {"fork_pause", forkPause},
		{"programs", programFigures}, {"fetch_ratio", fetchRatio},
	}
	if long {
		all = []measurement{{"boot_reliability", bootReliability}, {"warm_clones", warmClones}}
	}
	b, err := newBench()
	if err != nil {
		return err
	}
	defer func() {
		if cerr := b.close(); err == nil {
			err = cerr
		}
	}()
	figures := []Figure{}
	for _, m := range all {
		if only != "" && only != m.name {
			continue
		}
		got, err := m.measure(b)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		for _, f := range got {
			fmt.Printf("%-22s %10.3f %-6s n=%-3d baseline %.3f  %s\n", f.Name, f.Value, f.Unit, f.N, f.Baseline, f.Note)
		}
		figures = append(figures, got...)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(out, append(text, '\n'), 0o644)
}

// timed returns how long do took, in seconds.
func timed(do func() error) (float64, error) {
	begin := time.Now()
	err := do()
	return time.Since(begin).Seconds(), err
}

// inTurn times both, n times each in turn, and returns the medians in seconds.
func inTurn(n int, ours, bare func() error) (a, b float64, err error) {
	medians, err := allInTurn(n, ours, bare)
	if err != nil {
		return 0, 0, err
	}
	return medians[0], medians[1], nil
}

// allInTurn times all sides, n times each in turn, and returns the medians in seconds.
func allInTurn(n int, sides ...func() error) (medians []float64, err error) {
	all := make([][]float64, len(sides))
	for range n {
		for i, do := range sides {
			s, err := timed(do)
			if err != nil {
				return nil, err
			}
			all[i] = append(all[i], s)
		}
	}
	for _, s := range all {
		medians = append(medians, median(s))
	}
	return medians, nil
}

func median(all []float64) float64 {
	s := slices.Sorted(slices.Values(all))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
