package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
