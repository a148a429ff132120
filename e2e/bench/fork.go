package main

import (
	"bufio"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// forkPause measures for how long a VM of 512 MiB stands still while it is forked, as who talks
// to it sees it: the longest time between two lines of a command that writes them all the time.
func forkPause(b *bench) (figures []Figure, err error) {
	const n = 5
	var silences []float64
	err = b.withVM(func(name string) error {
		lines, hush, err := b.talk(name)
		if err != nil {
			return err
		}
		for range n {
			silence, err := b.silenceOfFork(name, lines)
			if err != nil {
				return errors.Join(err, hush())
			}
			silences = append(silences, silence.Seconds()*1000)
		}
		return hush()
	}, "--memory", "512M")
	if err != nil {
		return nil, err
	}
	return []Figure{{"fork_pause", median(silences), "ms", n, 0,
		fmt.Sprintf("the longest silence of a VM of 512 MiB while it is forked; %.0f to %.0f", slices.Min(silences), slices.Max(silences))}}, nil
}

// talk has a VM write lines, and gives the times at which they come, until hush is called.
func (b *bench) talk(name string) (lines <-chan time.Time, hush func() error, err error) {
	c := exec.Command(filepath.Join(b.bin, "banger"), "exec", name, "--", "sh", "-c", "while echo; do usleep 2000; done")
	c.Env = b.env()
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := c.Start(); err != nil {
		return nil, nil, err
	}
	times := make(chan time.Time, 1<<16) // more than come in a measurement
	go func() {
		defer close(times)
		for s := bufio.NewScanner(out); s.Scan(); {
			times <- time.Now()
		}
	}()
	return times, func() error {
		err := c.Process.Kill()
		for range times { // what it still wrote
		}
		_ = c.Wait() // it was killed
		return err
	}, nil
}

// silenceOfFork forks a VM that talks, removes the copy, and returns the VM's longest silence.
func (b *bench) silenceOfFork(name string, lines <-chan time.Time) (longest time.Duration, err error) {
	for range len(lines) { // of before
		<-lines
	}
	last, ok := <-lines
	if !ok {
		return 0, errors.New("the VM has stopped talking")
	}
	twin, err := b.banger("fork", name)
	if err != nil {
		return 0, err
	}
	for range len(lines) {
		at := <-lines
		longest, last = max(longest, at.Sub(last)), at
	}
	if longest == 0 {
		return 0, errors.New("the VM has said nothing since it was forked")
	}
	_, err = b.banger("rm", "-f", strings.TrimSpace(twin))
	return longest, err
}
