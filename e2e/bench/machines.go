package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"banger/internal/disk"
	"banger/internal/disk/qcow2"
)

// diskCreate measures the making of a root disk, for the smallest image and the largest.
func diskCreate(b *bench) ([]Figure, error) {
	images, err := b.images()
	if err != nil {
		return nil, err
	}
	var figures []Figure
	for _, name := range []string{"tiny", "debian"} {
		image, ok := images[name]
		if !ok {
			return nil, fmt.Errorf("there is no image %s", name)
		}
		dir := filepath.Join(b.scratch, "disk-"+name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		var volume disk.Volume
		bare := filepath.Join(dir, "bare")
		const n = 50
		ours, sparse, err := inTurn(n, func() (err error) {
			volume, err = qcow2.Driver{}.Clone(context.Background(), disk.Base{Path: image.Path, Bytes: image.VirtualBytes}, disk.Spec{Home: disk.Home{Dir: dir}})
			return err
		}, func() error {
			f, err := os.Create(bare)
			if err != nil {
				return err
			}
			return errors.Join(f.Truncate(image.VirtualBytes), f.Close())
		})
		if err != nil {
			return nil, err
		}
		usage, err := qcow2.Driver{}.Usage(volume)
		if err != nil {
			return nil, err
		}
		note := fmt.Sprintf("overlay of a %d MiB image; the baseline is an empty sparse file", image.VirtualBytes>>20)
		figures = append(figures,
			Figure{"disk_create_" + name, ours * 1000, "ms", n, sparse * 1000, note},
			Figure{"disk_create_" + name + "_bytes", float64(usage.AllocatedBytes) / (1 << 20), "MiB", 1, 0, "allocated for it"})
	}
	return figures, nil
}

// coldRun measures `banger run --rm -- true` against the same machine started by hand until
// its agent's first byte.
func coldRun(b *bench) ([]Figure, error) {
	m, err := b.machineByHand()
	if err != nil {
		return nil, err
	}
	const n = 8
	ours, bare, err := inTurn(n, func() error {
		_, err := b.banger("run", "--rm", "--backend", "qemu", "--image", "tiny", "--", "true")
		return err
	}, func() error { return m.untilReady(func(*exec.Cmd) error { return nil }) })
	if err != nil {
		return nil, err
	}
	return []Figure{
		{"cold_run_ratio", ours / bare, "ratio", n, 1, fmt.Sprintf("%.2f s against %.2f s of the same QEMU by hand until the agent's first byte", ours, bare)},
	}, nil
}

// jailCost measures a start that confines QEMU against one that does not.
func jailCost(b *bench) ([]Figure, error) {
	if os.Geteuid() != 0 {
		fmt.Println("SKIP: jail_cost: only root can confine QEMU")
		return nil, nil
	}
	run := func(more ...string) func() error {
		return func() error {
			_, err := b.banger(append(append([]string{"run", "--rm", "--backend", "qemu", "--image", "tiny"}, more...), "--", "true")...)
			return err
		}
	}
	const n = 8
	jailed, free, err := inTurn(n, run(), run("--unjailed"))
	return []Figure{{"jail_cost", jailed / free, "ratio", n, 1, fmt.Sprintf("%.2f s confined, %.2f s not", jailed, free)}}, err
}

// idleCPU measures what an idle VM takes of a core.
func idleCPU(b *bench) (figures []Figure, err error) {
	err = b.withVM(func(name string) error {
		vm, err := b.vm(name)
		if err != nil {
			return err
		}
		const settle, window = 10 * time.Second, 20 * time.Second
		time.Sleep(settle) // what the guest still does after its start
		before, err := cpuSeconds(vm.PID)
		if err != nil {
			return err
		}
		time.Sleep(window)
		after, err := cpuSeconds(vm.PID)
		figures = []Figure{{"idle_cpu", 100 * (after - before) / window.Seconds(), "%", 1, 0, "of one core, an idle tiny VM over 20 s"}}
		return err
	})
	return figures, err
}

// daemonRSS measures the daemon's memory with ten VMs known.
func daemonRSS(b *bench) ([]Figure, error) {
	var names []string
	for i := range 10 {
		names = append(names, fmt.Sprintf("known-%d", i))
		if _, err := b.banger("create", "--image", "tiny", "--name", names[i]); err != nil {
			return nil, err
		}
	}
	d, err := b.client.Daemon(context.Background())
	if err != nil {
		return nil, err
	}
	rss, err := rssMiB(d.PID)
	if err != nil {
		return nil, err
	}
	_, err = b.banger(append([]string{"rm"}, names...)...)
	return []Figure{{"daemon_rss", rss, "MiB", 1, 0, "with ten VMs known, after the other measurements"}}, err
}

// bootReliability starts 200 VMs, the second half while both cores are kept busy.
func bootReliability(b *bench) ([]Figure, error) {
	const starts = 200
	ready := 0
	start := func() {
		if _, err := b.banger("run", "--rm", "--image", "tiny", "--", "true"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		ready++
	}
	for range starts / 2 {
		start()
	}
	stop, err := busy(2)
	if err != nil {
		return nil, err
	}
	defer stop()
	for range starts / 2 {
		start()
	}
	return []Figure{{"boot_reliability", float64(ready), "of 200", starts, starts, "starts of tiny that reached ready, half of them on a busy host"}}, nil
}

// busy keeps n cores busy until stop is called.
func busy(n int) (stop func(), err error) {
	var all []*exec.Cmd
	stop = func() {
		for _, c := range all {
			c.Process.Kill()
			c.Wait() // says only that it was killed
		}
	}
	for range n {
		c := exec.Command("sh", "-c", "while :; do :; done")
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := c.Start(); err != nil {
			stop()
			return nil, err
		}
		all = append(all, c)
	}
	return stop, nil
}
