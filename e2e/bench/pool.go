package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"banger/api"
)

// poolClaim measures a VM that was kept ready, from the command to the first byte of what is run
// in it, against one that starts warm.
func poolClaim(*bench) ([]Figure, error) {
	const n = 10
	var claimed, warm []float64
	err := withTemplates(func(b *bench) (err error) {
		warm, err = b.firstOutputs(n, func() error { return nil })
		return err
	}, "tiny")
	if err == nil {
		err = withTemplates(func(b *bench) (err error) {
			if _, err := b.banger("daemon", "stop"); err != nil {
				return err
			}
			b.pool = "tiny=1"
			if _, err := b.banger("daemon", "start"); err != nil {
				return err
			}
			claimed, err = b.firstOutputs(n, b.awaitPool)
			return err
		}, "tiny")
	}
	if err != nil {
		return nil, err
	}
	c, w := median(claimed), median(warm)
	return []Figure{{"pool_claim", c / w, "ratio", n, 1, fmt.Sprintf("%.0f ms from the command to the first byte of its output in a VM that was ready, %.0f ms in one that starts warm", c*1000, w*1000)}}, nil
}

// awaitPool waits until a VM is ready.
func (b *bench) awaitPool() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for {
		vms, err := b.client.VMs(ctx)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(vms, func(v api.VM) bool { return v.Pooled && v.State == "paused" }) {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return errors.New("no VM is ever ready")
		}
	}
}

// firstOutputs returns how many seconds each of n commands took to its first byte.
func (b *bench) firstOutputs(n int, before func() error) (all []float64, err error) {
	for range n {
		if err := before(); err != nil {
			return nil, err
		}
		c := exec.Command(filepath.Join(b.bin, "banger"), "run", "--rm", "--image", "tiny", "--", "echo", "hello")
		c.Env, c.Stderr = b.env(), os.Stderr
		out, err := c.StdoutPipe()
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := c.Start(); err != nil {
			return nil, err
		}
		_, err = out.Read(make([]byte, 64))
		all = append(all, time.Since(begin).Seconds())
		if err := errors.Join(err, c.Wait()); err != nil {
			return nil, err
		}
	}
	return all, nil
}
