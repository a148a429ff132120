package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
)

// create makes n VMs without starting them.
func (b *bench) create(n int) error {
	if _, err := b.banger("daemon", "start"); err != nil {
		return err
	}
	for range n {
		if _, err := b.client.CreateVM(context.Background(), api.CreateVM{Image: "tiny"}, nil); err != nil {
			return err
		}
	}
	return nil
}

// removeAll removes every VM there is.
func (b *bench) removeAll() error {
	_, err := b.banger("rm", "-f", "--all")
	return err
}

// ls1000 measures the whole of `banger ls`, by a process of its own, with 1,000 VMs known
// against one; and, since that need not show them, of `banger ls -a`.
func ls1000(many *bench) (_ []Figure, err error) {
	one, err := newBench()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, one.removeAll(), one.close(), many.removeAll()) }()
	if err := errors.Join(one.create(1), many.create(1000)); err != nil {
		return nil, err
	}
	ls := func(b *bench, lines int, args ...string) func() error {
		return func() error {
			out, err := b.banger(append([]string{"ls"}, args...)...)
			if n := strings.Count(out, "\n"); err == nil && n != lines {
				err = fmt.Errorf("ls %q printed %d lines, not %d", args, n, lines)
			}
			return err
		}
	}
	const n = 30
	var figures []Figure
	for _, side := range []struct {
		name      string
		one, many func() error
	}{
		{"ls_1000", ls(one, 1), ls(many, 1)},
		{"ls_all_1000", ls(one, 2, "-a"), ls(many, 1001, "-a")},
	} {
		with1000, with1, err := inTurn(n, side.many, side.one)
		if err != nil {
			return nil, err
		}
		figures = append(figures, Figure{side.name, with1000 / with1, "ratio", n, 1, fmt.Sprintf("%.1f ms with 1,000 stopped VMs known, %.1f ms with one", with1000*1000, with1*1000)})
	}
	return figures, nil
}

// rmRatio measures `banger rm -f` of a running VM until nothing of it is left against a bare
// `kill -9` of the same machine started by hand, and the wait for its end.
func rmRatio(b *bench) ([]Figure, error) {
	m, err := b.machineByHand()
	if err != nil {
		return nil, err
	}
	const n = 8
	var ours, bare []float64
	for range n {
		if _, err := b.banger("run", "-d", "--image", "tiny", "--name", "doomed", "--wait", "agent"); err != nil {
			return nil, err
		}
		s, err := timed(func() error {
			_, err := b.banger("rm", "-f", "doomed")
			return err
		})
		if err != nil {
			return nil, err
		}
		ours = append(ours, s)
		if s, err = m.killed(); err != nil {
			return nil, err
		}
		bare = append(bare, s)
	}
	const starts = 40 // of a process that does nothing, for the note
	program, _, err := inTurn(starts, func() error {
		_, err := b.banger("--version")
		return err
	}, func() error { return nil })
	if err != nil {
		return nil, err
	}
	o, w := median(ours), median(bare)
	return []Figure{{"rm_ratio", o / w, "ratio", n, 1, fmt.Sprintf(
		"%.1f ms against %.1f ms of kill -9 and wait; %.1f ms go to starting banger, the rest beside the kill to one flush of the database and to the disk's file", o*1000, w*1000, program*1000)}}, nil
}

// killed starts the machine by hand, waits for its agent's first byte, and returns how many
// seconds its end takes.
func (m *byHand) killed() (seconds float64, err error) {
	err = m.untilReady(func(c *exec.Cmd) error {
		seconds, err = timed(func() error {
			if err := exec.Command("kill", "-9", strconv.Itoa(c.Process.Pid)).Run(); err != nil {
				return err
			}
			c.Wait() // says only that it was killed
			return nil
		})
		return err
	})
	return seconds, err
}

// startMany times n times, in turn, the start of that many VMs by run, at once and one after
// another, each time with their removal. It returns the medians in seconds.
func (b *bench) startMany(n, vms int, run func() error) (atOnce, inOrder float64, err error) {
	return inTurn(n, func() error {
		all := make([]error, vms)
		var wg sync.WaitGroup
		for i := range all {
			wg.Go(func() { all[i] = run() })
		}
		wg.Wait()
		return errors.Join(append(all, b.removeAll())...)
	}, func() error {
		for range vms {
			if err := run(); err != nil {
				return err
			}
		}
		return b.removeAll()
	})
}

// parallelCreate measures the start of ten VMs at once against ten in turn.
func parallelCreate(b *bench) ([]Figure, error) {
	const vms, n = 10, 2
	run := func() error {
		_, err := b.banger("run", "-d", "--image", "tiny", "--cpus", "1", "--memory", "128M", "--wait", "agent")
		return err
	}
	atOnce, inOrder, err := b.startMany(n, vms, run)
	if err != nil {
		return nil, err
	}
	return []Figure{{"parallel_create", atOnce / inOrder, "ratio", n, 1, fmt.Sprintf("%d VMs in %.1f s at once, in %.1f s in turn", vms, atOnce, inOrder)}}, nil
}

// restartRecover measures how long a daemon takes to serve after a crash of the last one,
// with 100 VMs of which some run.
func restartRecover(b *bench) (_ []Figure, err error) {
	const vms, up, n = 100, 5, 5
	if err := b.create(vms - up); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.removeAll()) }()
	for range up {
		if _, err := b.banger("run", "-d", "--image", "tiny", "--memory", "128M", "--wait", "agent"); err != nil {
			return nil, err
		}
	}
	var all []float64
	for range n {
		if err := b.crash(); err != nil {
			return nil, err
		}
		s, err := timed(func() error {
			_, err := b.banger("daemon", "start")
			return err
		})
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return []Figure{{"restart_recover_100", median(all), "s", n, 0, fmt.Sprintf("until the next daemon serves after a crash, with %d VMs, %d of them running", vms, up)}}, nil
}

// crash kills the daemon and waits until it is gone.
func (b *bench) crash() error {
	d, err := b.client.Daemon(context.Background())
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(d.PID, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, syscall.SIGKILL, nil, 0); err != nil {
		return err
	}
	for { // readable once it has ended
		switch n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Minute.Milliseconds())); {
		case err == unix.EINTR:
		case n != 1:
			return fmt.Errorf("the daemon does not end: %w", err)
		default:
			return nil
		}
	}
}
