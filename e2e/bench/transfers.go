package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// sshConfig writes the VMs' configuration for OpenSSH and returns its path.
func (b *bench) sshConfig() (string, error) {
	text, err := b.banger("ssh-config")
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.scratch, "ssh-config")
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// execRatio measures `banger exec vm -- true` against OpenSSH over a master connection that
// is open already.
func execRatio(b *bench) (figures []Figure, err error) {
	err = b.withVM(func(name string) (err error) {
		config, err := b.sshConfig()
		if err != nil {
			return err
		}
		ssh := func(args ...string) error {
			_, err := b.command("ssh", append([]string{"-F", config, "-S", filepath.Join(b.scratch, "master")}, args...)...)
			return err
		}
		if err := b.background("ssh", "-F", config, "-S", filepath.Join(b.scratch, "master"), "-M", "-f", "-N", name); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, ssh("-O", "exit", name)) }()
		const n = 40
		ours, bare, err := inTurn(n, func() error {
			_, err := b.banger("exec", name, "--", "true")
			return err
		}, func() error { return ssh(name, "true") })
		if err != nil {
			return err
		}
		figures = []Figure{{"exec_ratio", ours / bare, "ratio", n, 1, fmt.Sprintf("%.1f ms against %.1f ms of ssh over a master connection", ours*1000, bare*1000)}}
		return nil
	})
	return figures, err
}

// cpRatio measures `banger cp` of 256 MiB each way against the same bytes through one bare
// stream of the channel, and against scp.
func cpRatio(b *bench) (figures []Figure, err error) {
	const size, scpSize, n = 256 << 20, 16 << 20, 5
	files := map[int64]string{}
	for _, bytes := range []int64{size, scpSize} {
		files[bytes] = filepath.Join(b.scratch, fmt.Sprintf("file-%d", bytes))
		f, err := os.Create(files[bytes])
		if err != nil {
			return nil, err
		}
		if _, err := io.CopyN(f, rand.Reader, bytes); err != nil {
			return nil, err
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	err = b.withVM(func(name string) error {
		config, err := b.sshConfig()
		if err != nil {
			return err
		}
		back := filepath.Join(b.scratch, "back")
		var in, out, bareIn, bareOut, scpIn, kept []float64
		for range n {
			for _, side := range []struct {
				all *[]float64
				do  func() error
			}{
				{&in, func() error { _, err := b.banger("cp", files[size], name+":/root/file"); return err }},
				{&out, func() error { _, err := b.banger("cp", name+":/root/file", back); return err }},
				{&kept, func() error { return keep(files[size]) }},
				{&scpIn, func() error {
					_, err := b.command("scp", "-q", "-F", config, files[scpSize], name+":/root/scp")
					return err
				}},
			} {
				s, err := timed(side.do)
				if err != nil {
					return err
				}
				*side.all = append(*side.all, s)
			}
			i, o, err := b.client.Measure(context.Background(), name, size)
			if err != nil {
				return err
			}
			bareIn, bareOut = append(bareIn, i.Seconds()), append(bareOut, o.Seconds())
		}
		rate := func(bytes int, seconds []float64) float64 { return float64(bytes) / (1 << 20) / median(seconds) }
		note := "%.0f MB/s against %.0f MB/s of a bare stream"
		alone := fmt.Sprintf("; to write such a file takes this host %.2f s, and a bare stream %.2f s", median(kept), median(bareOut))
		figures = []Figure{
			{"cp_in_ratio", median(in) / median(bareIn), "ratio", n, 1, fmt.Sprintf(note, rate(size, in), rate(size, bareIn))},
			{"cp_out_ratio", median(out) / median(bareOut), "ratio", n, 1, fmt.Sprintf(note, rate(size, out), rate(size, bareOut)) + alone},
			{"cp_against_scp", rate(size, in) / rate(scpSize, scpIn), "times", n, 1, fmt.Sprintf("the speed of scp, which has %.1f MB/s", rate(scpSize, scpIn))},
		}
		return nil
	}, "--disk", "2G", "--memory", "1G")
	return figures, err
}

// keep copies a file to another beside it, and removes that.
func keep(path string) error {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Create(path + ".kept")
	if err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	_, err = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buf) // not within the kernel
	return errors.Join(err, to.Close(), os.Remove(path+".kept"))
}
