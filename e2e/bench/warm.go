package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
)

// withTemplates calls do with a banger that has these templates.
func withTemplates(do func(b *bench) error, images ...string) (err error) {
	b, err := newBench()
	if err != nil {
		return err
	}
	b.budget = "4G"
	defer func() { err = errors.Join(err, b.removeAll(), b.close()) }()
	for _, image := range images {
		if _, err := b.banger("template", "build", image); err != nil {
			return err
		}
	}
	return do(b)
}

// warmFigures measures VMs that start warm against such that boot.
func warmFigures(*bench) (figures []Figure, err error) {
	err = withTemplates(func(b *bench) error {
		for _, measure := range []func(*bench) ([]Figure, error){warmRun, warmParallel, warmMemory} {
			got, err := measure(b)
			if err != nil {
				return err
			}
			figures = append(figures, got...)
		}
		return nil
	}, "debian", "tiny")
	return figures, err
}

// warmRun measures `banger run --rm -- true`, warm against cold.
func warmRun(b *bench) ([]Figure, error) {
	var figures []Figure
	for _, side := range []struct {
		image string
		n     int
	}{{"debian", 2}, {"tiny", 3}} {
		run := func(how string) func() error {
			return func() error {
				_, err := b.banger("run", "--rm", how, "--image", side.image, "--", "true")
				return err
			}
		}
		// Each cold one stands beside several warm ones, of which the median counts.
		const each = 5
		medians := make([][]float64, 2)
		for range side.n {
			for range each {
				s, err := timed(run("--warm"))
				if err != nil {
					return nil, err
				}
				medians[0] = append(medians[0], s)
			}
			s, err := timed(run("--fresh"))
			if err != nil {
				return nil, err
			}
			medians[1] = append(medians[1], s)
		}
		warm, cold := median(medians[0]), median(medians[1])
		figures = append(figures, Figure{"warm_run_ratio_" + side.image, warm / cold, "ratio", side.n, 1,
			fmt.Sprintf("%.2f s warm (of %d), %.1f s cold, from the command to its end", warm, each*side.n, cold)})
	}
	return figures, nil
}

// warmParallel measures ten warm starts at once against ten in turn.
func warmParallel(b *bench) ([]Figure, error) {
	const vms, n = 10, 2
	run := func() error {
		_, err := b.banger("run", "-d", "--warm", "--image", "tiny")
		return err
	}
	atOnce, inOrder, err := b.startMany(n, vms, run)
	if err != nil {
		return nil, err
	}
	return []Figure{{"warm_parallel", atOnce / inOrder, "ratio", n, 1, fmt.Sprintf("%d VMs in %.1f s at once, in %.1f s in turn, each with their removal", vms, atOnce, inOrder)}}, nil
}

// warmMemory measures what an idle warm Debian has of memory for itself against one that has
// booted, and what its template takes of the disk against what that has touched of its memory.
func warmMemory(b *bench) ([]Figure, error) {
	for _, vm := range [][]string{{"cold", "--fresh"}, {"warm", "--warm"}, {"twin", "--warm"}} {
		if _, err := b.banger("run", "-d", "--name", vm[0], vm[1]); err != nil {
			return nil, err
		}
	}
	private := map[string]float64{}
	var touched float64
	for _, name := range []string{"cold", "warm"} {
		vm, err := b.vm(name)
		if err != nil {
			return nil, err
		}
		maps, err := mappings(vm.PID)
		if err != nil {
			return nil, err
		}
		for _, m := range maps {
			private[name] += m["Private_Clean"] + m["Private_Dirty"]
			if name == "cold" && m["Size"] == float64(vm.MemoryBytes>>10) {
				touched = m["Rss"]
			}
		}
	}
	ts, err := b.client.Templates(context.Background())
	if err != nil {
		return nil, err
	}
	var takes float64
	for _, t := range ts {
		if t.Image == "debian" {
			takes = float64(t.Bytes >> 10)
		}
	}
	if touched == 0 || takes == 0 {
		return nil, fmt.Errorf("the guest has touched %.0f KiB, its template takes %.0f", touched, takes)
	}
	return []Figure{
		{"warm_memory", private["warm"] / private["cold"], "ratio", 1, 1, fmt.Sprintf("%.0f MiB of its own, of an idle Debian that started warm, %.0f of one that booted", private["warm"]/1024, private["cold"]/1024)},
		{"template_cost", takes / touched, "ratio", 1, 1, fmt.Sprintf("%.0f MiB of disk for a template of Debian, whose guest touches %.0f of memory", takes/1024, touched/1024)},
	}, b.removeAll()
}

// mappings reads what the kernel tells of each part of a process's memory, in KiB.
func mappings(pid int) (all []map[string]float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		if len(f) != 2 || f[1] != "kB" {
			if strings.Contains(name, "-") { // the first of a part: its addresses
				all = append(all, map[string]float64{})
			}
			continue
		}
		if kib, err := strconv.ParseFloat(f[0], 64); err == nil && len(all) > 0 {
			all[len(all)-1][name] = kib
		}
	}
	return all, nil
}

// warmClones counts what goes wrong with 200 clones in turn and 20 at once, and in how many two
// of them have anything in common that tells machines apart.
func warmClones(*bench) ([]Figure, error) {
	const inTurn, atOnce = 200, 20
	var mu sync.Mutex
	seen, duplicates, failures := map[string]bool{}, 0, 0
	err := withTemplates(func(b *bench) error {
		one := func() {
			out, err := b.banger("run", "--rm", "--warm", "--image", "tiny", "--", "sh", "-c",
				"cat /etc/machine-id /proc/sys/kernel/random/boot_id /sys/class/net/eth0/address; head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; hostname")
			mu.Lock()
			defer mu.Unlock()
			ids := strings.Split(strings.TrimSpace(out), "\n")
			if err != nil || len(ids) != 6 {
				failures++
				return
			}
			for _, id := range ids[:5] { // names are invented again once they are free
				if seen[id] {
					duplicates++
				}
				seen[id] = true
			}
		}
		for range inTurn {
			one()
		}
		var wg sync.WaitGroup
		for range atOnce {
			wg.Go(one)
		}
		wg.Wait()
		found, err := b.client.Census(context.Background())
		for _, f := range found {
			if f.Problem != "" {
				err = errors.Join(err, fmt.Errorf("the census finds %s %s: %s", f.Kind, f.Name, f.Problem))
			}
		}
		return err
	}, "tiny")
	note := fmt.Sprintf("%d clones in turn and %d at once", inTurn, atOnce)
	return []Figure{{"warm_duplicates", float64(duplicates), "of all", inTurn + atOnce, 0, note + ": identities that two of them had"},
		{"warm_failures", float64(failures), "of all", inTurn + atOnce, 0, note + ": those that failed"}}, err
}
