package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/disk/copy"
	"banger/internal/disk/dm"
	"banger/internal/disk/dm/devmapper"
	"banger/internal/disk/loop"
	"banger/internal/disk/qcow2"
	"banger/internal/disk/reflink"
)

// clones measures each driver's clone of a large base against one of a small base, and both
// against an empty sparse file. The bases hold the same 64 MiB of data.
func clones(b *bench) (figures []Figure, err error) {
	plain := filepath.Join(b.scratch, "clones")
	if err := os.Mkdir(plain, 0o700); err != nil {
		return nil, err
	}
	shared, unmount, err := mountBtrfs(b.scratch)
	if err != nil {
		fmt.Println("SKIP: clone_ms_reflink:", err)
	} else {
		defer func() { err = errors.Join(err, unmount()) }()
	}
	for _, c := range []struct {
		driver disk.Driver
		dir    string
		n      int
	}{{qcow2.Driver{}, plain, 50}, {dm.New(devmapper.New(devmapper.Host)), plain, 50}, {reflink.New(), shared, 50}, {copy.New(), plain, 3}} {
		if c.dir == "" {
			continue
		}
		got, err := cloneFigures(c.driver, c.dir, c.n)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.driver.Name(), err)
		}
		figures = append(figures, got...)
	}
	return figures, nil
}

func cloneFigures(d disk.Driver, dir string, n int) ([]Figure, error) {
	clone := func(gib int64) (func() error, error) {
		base := disk.Base{Path: filepath.Join(dir, fmt.Sprintf("base-%d", gib)), Bytes: gib << 30}
		home := disk.Home{ID: "benc", Dir: filepath.Join(dir, fmt.Sprintf("%s-%d", d.Name(), gib))}
		if err := errors.Join(writeBase(base), os.MkdirAll(home.Dir, 0o700)); err != nil {
			return nil, err
		}
		return func() error {
			_, err := d.Clone(context.Background(), base, disk.Spec{Home: home})
			return err
		}, nil
	}
	small, err := clone(1)
	if err != nil {
		return nil, err
	}
	large, err := clone(20)
	if err != nil {
		return nil, err
	}
	ofLarge, ofSmall, err := inTurn(n, large, small)
	if err != nil {
		return nil, err
	}
	bare := filepath.Join(dir, "bare")
	again, sparse, err := inTurn(n, large, func() error {
		if err := os.Remove(bare); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		f, err := os.Create(bare)
		if err != nil {
			return err
		}
		return errors.Join(f.Truncate(20<<30), f.Close())
	})
	if err != nil {
		return nil, err
	}
	return []Figure{
		{"clone_ms_" + d.Name(), again * 1000, "ms", n, sparse * 1000, "of a 20 GiB base with 64 MiB of data; the baseline is an empty sparse file"},
		{"clone_growth_" + d.Name(), ofLarge / ofSmall, "ratio", n, 1, fmt.Sprintf("%.3f ms for 20 GiB against %.3f ms for 1 GiB", ofLarge*1000, ofSmall*1000)},
	}, nil
}

// writeBase makes a base with 64 MiB of data, unless it is there.
func writeBase(b disk.Base) error {
	if _, err := os.Stat(b.Path); err == nil {
		return nil
	}
	f, err := os.Create(b.Path)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(strings.Repeat("banger: ", 64<<20/8)))
	return errors.Join(err, f.Truncate(b.Bytes), f.Sync(), f.Close())
}

// mountBtrfs mounts a filesystem whose files share blocks.
func mountBtrfs(scratch string) (dir string, unmount func() error, err error) {
	image, dir := filepath.Join(scratch, "btrfs.img"), filepath.Join(scratch, "btrfs")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 2<<30), os.Mkdir(dir, 0o700)); err != nil {
		return "", nil, err
	}
	if _, err := (&bench{state: scratch}).command("mkfs.btrfs", "-q", image); err != nil {
		return "", nil, err
	}
	var loops loop.Loops
	dev, err := loops.OpenNew(context.Background(), image, false)
	if err != nil {
		return "", nil, err
	}
	defer dev.Close() // the mount holds it
	if err := unix.Mount(dev.Path(), dir, "btrfs", 0, ""); err != nil {
		return "", nil, fmt.Errorf("mount btrfs: %w", err)
	}
	return dir, func() error { return unix.Unmount(dir, 0) }, nil
}

// guestIO measures what the overlay costs a guest, against a raw file in the same guest.
func guestIO(b *bench) ([]Figure, error) {
	program := filepath.Join(b.scratch, "guestio")
	if _, err := b.command("env", "CGO_ENABLED=0", "go", "build", "-o", program, "./e2e/bench/guestio"); err != nil {
		return nil, err
	}
	for _, driver := range []string{"qcow2", "copy"} {
		if _, err := b.banger("run", "-d", "--image", "tiny", "--disk", "4G", "--disk-driver", driver, "--name", driver); err != nil {
			return nil, err
		}
		if _, err := b.banger("cp", program, driver+":/root/guestio"); err != nil {
			return nil, err
		}
	}
	const bytes, randomBytes, n = 256 << 20, 32 << 20, 5
	var write, read [2][]float64
	for i := range n {
		for side, driver := range []string{"qcow2", "copy"} {
			file := fmt.Sprintf("/root/file-%d", i) // each time on blocks that are new
			s, err := b.guestio(driver, "seq-write", file, bytes)
			if err != nil {
				return nil, err
			}
			write[side] = append(write[side], s)
			if i == 0 { // what is read at random has to be there
				if _, err := b.guestio(driver, "seq-write", "/root/whole", 512<<20); err != nil {
					return nil, err
				}
			}
			if s, err = b.guestio(driver, "rand-read", "/root/whole", randomBytes); err != nil {
				return nil, err
			}
			read[side] = append(read[side], s)
		}
	}
	amplification, err := b.amplification("qcow2")
	if err != nil {
		return nil, err
	}
	rate := func(bytes int, s []float64) float64 { return float64(bytes) / (1 << 20) / median(s) }
	note := "%.0f MiB/s against %.0f MiB/s of a raw file, in the same guest"
	_, err = b.banger("rm", "-f", "qcow2", "copy")
	return []Figure{
		amplification,
		{"seq_write_ratio", median(write[1]) / median(write[0]), "ratio", n, 1, fmt.Sprintf(note, rate(bytes, write[0]), rate(bytes, write[1]))},
		{"rand_read_ratio", median(read[1]) / median(read[0]), "ratio", n, 1, fmt.Sprintf(note, rate(randomBytes, read[0]), rate(randomBytes, read[1]))},
	}, err
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

// manyDisks measures what the disks of 30 VMs take once each has booted.
func manyDisks(b *bench) ([]Figure, error) {
	const n = 30
	var sum int64
	var names []string
	for i := range n {
		name := fmt.Sprintf("many-%d", i)
		names = append(names, name)
		if _, err := b.banger("run", "-d", "--image", "tiny", "--name", name); err != nil {
			return nil, err
		}
		if _, err := b.banger("stop", name); err != nil {
			return nil, err
		}
		vm, err := b.vm(name)
		if err != nil {
			return nil, err
		}
		sum += vm.Disk.AllocatedBytes
	}
	_, err := b.banger(append([]string{"rm"}, names...)...)
	return []Figure{{"disk_space_30_vms", float64(sum) / n / (1 << 20), "MiB", n, 0, "allocated for each VM of tiny beside its image, once booted and stopped"}}, err
}
