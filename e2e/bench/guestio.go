package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/host"
)

// guestIO measures what the overlay costs a guest, against a raw file in the same guest.
func guestIO(b *bench) (_ []Figure, err error) {
	const name, bytes, randomBytes, n = "qcow2", 256 << 20, 32 << 20, 5
	program := filepath.Join(b.scratch, "guestio")
	if _, err := b.command("env", "CGO_ENABLED=0", "go", "build", "-o", program, "./e2e/bench/guestio"); err != nil {
		return nil, err
	}
	restore, err := b.addRawDisk(4 << 30)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, restore()) }()
	if _, err := b.banger("run", "-d", "--image", "tiny", "--disk", "4G", "--disk-driver", "qcow2", "--unjailed", "--name", name); err != nil {
		return nil, err
	}
	defer func() {
		_, rmErr := b.banger("rm", "-f", name)
		err = errors.Join(err, rmErr)
	}()
	if _, err := b.banger("cp", program, name+":/root/guestio"); err != nil {
		return nil, err
	}
	// vda is the overlay, vdb the kernel's modules, and vdc the raw file.
	if _, err := b.banger("exec", name, "--", "sh", "-c", "mkdir /raw && mount -t ext4 /dev/vdc /raw"); err != nil {
		return nil, err
	}
	var write, read [2][]float64
	for i := range n {
		for side, dir := range []string{"/root", "/raw"} {
			file := fmt.Sprintf("%s/file-%d", dir, i) // each time on blocks that are new
			s, err := b.guestio(name, "seq-write", file, bytes)
			if err != nil {
				return nil, err
			}
			write[side] = append(write[side], s)
			if i == 0 { // what is read at random has to be there
				if _, err := b.guestio(name, "seq-write", dir+"/whole", 512<<20); err != nil {
					return nil, err
				}
			}
			if s, err = b.guestio(name, "rand-read", dir+"/whole", randomBytes); err != nil {
				return nil, err
			}
			read[side] = append(read[side], s)
		}
	}
	amplification, err := b.amplification(name)
	rate := func(bytes int, s []float64) float64 { return float64(bytes) / (1 << 20) / median(s) }
	const note = "%.0f MiB/s against %.0f MiB/s of a raw file, in the same guest"
	return []Figure{
		amplification,
		{"seq_write_ratio", median(write[1]) / median(write[0]), "ratio", n, 1, fmt.Sprintf(note, rate(bytes, write[0]), rate(bytes, write[1]))},
		{"rand_read_ratio", median(read[1]) / median(read[0]), "ratio", n, 1, fmt.Sprintf(note, rate(randomBytes, read[0]), rate(randomBytes, read[1]))},
	}, err
}

// addRawDisk has machines that start from now on see a raw file with a filesystem as their
// last disk, treated by QEMU as banger has it treat others: a program in QEMU's place says
// so. restore brings QEMU back.
func (b *bench) addRawDisk(bytes int64) (restore func() error, err error) {
	raw, dir := filepath.Join(b.scratch, "raw"), filepath.Join(b.scratch, "path")
	if err := errors.Join(os.WriteFile(raw, nil, 0o600), os.Truncate(raw, bytes), os.Mkdir(dir, 0o700)); err != nil {
		return nil, err
	}
	if _, err := b.command("mkfs.ext4", "-q", raw); err != nil {
		return nil, err
	}
	const name = "qemu-system-x86_64"
	qemu, err := host.LookPath(name)
	if err != nil {
		return nil, err
	}
	script := fmt.Sprintf(`#!/bin/sh
exec %s "$@" -blockdev driver=raw,node-name=raw,discard=unmap,file.driver=file,file.filename=%s,file.discard=unmap \
	-device virtio-blk-pci,iothread=io,werror=stop,drive=raw
`, qemu, raw)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
		return nil, err
	}
	usual := os.Getenv("PATH")
	become := func(path string) error { // the daemon's that starts next
		_, err := b.banger("daemon", "stop")
		return errors.Join(err, os.Setenv("PATH", path))
	}
	return func() error { return become(usual) }, become(dir + ":" + usual)
}

// guestio runs the program of that name in a VM and returns the seconds that it took.
func (b *bench) guestio(vm, what, file string, bytes int) (float64, error) {
	out, err := b.banger("exec", vm, "--", "/root/guestio", what, file, strconv.Itoa(bytes))
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(out), 64)
}

// amplification is the bytes that the host allocates for each byte of random first writes.
func (b *bench) amplification(name string) (Figure, error) {
	const bytes = 64 << 20
	before, err := b.vm(name)
	if err != nil {
		return Figure{}, err
	}
	if _, err := b.guestio(name, "rand-write", "/root/random", bytes); err != nil {
		return Figure{}, err
	}
	after, err := b.vm(name)
	grown := float64(after.Disk.AllocatedBytes - before.Disk.AllocatedBytes)
	return Figure{"first_write_amplification", grown / bytes, "ratio", 1, 1, "bytes allocated for each byte of 64 MiB of 4k random first writes in a guest, qcow2"}, err
}
