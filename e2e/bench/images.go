package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"banger/api"
	"banger/internal/image"
	"banger/internal/image/apt"
)

// imageBuild measures the build of the image debian, from nothing, against the mmdebstrap
// and mkfs.ext4 that it can't do without; and a build that finds nothing changed.
func imageBuild(b *bench) ([]Figure, error) {
	m, err := image.BuiltIn("debian")
	if err != nil {
		return nil, err
	}
	// A banger of its own, in the host's network namespace, where the mirrors can be reached.
	o := &bench{bin: b.bin, scratch: b.scratch}
	if o.state, err = os.MkdirTemp("", "banger-bench-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(o.state)
	defer o.outside("daemon", "stop")
	if err := o.outside("image", "ls"); err != nil { // starts the daemon
		return nil, err
	}
	build := func() error { return o.outside("image", "build", "--refresh", "debian") }
	bare := func() error { return bareImage(m, filepath.Join(o.state, "bare")) }
	daemon, err := api.New(filepath.Join(o.state, "bangerd.sock")).Daemon(context.Background())
	if err != nil {
		return nil, err
	}
	var oursCPU, theirsCPU []float64
	ours, theirs, err := inTurn(3,
		func() error {
			return spent(&oursCPU, build, func() (float64, error) { return cpuOfAll(daemon.PID) })
		},
		func() error {
			return spent(&theirsCPU, bare, func() (float64, error) { return cpuOfAll(os.Getpid()) })
		})
	if err != nil {
		return nil, err
	}
	cpu, bareCPU := median(oursCPU), median(theirsCPU)
	noop, _, err := inTurn(5, func() error { return o.outside("image", "build", "debian") }, func() error { return nil })
	if err != nil {
		return nil, err
	}
	return []Figure{
		{"image_build_ratio", ours / theirs, "ratio", 3, theirs, "build of debian from nothing against mmdebstrap into a directory and mkfs.ext4 -d, s"},
		{"image_build_cpu_ratio", cpu / bareCPU, "ratio", 3, bareCPU, "processor time of the same, which a busy host does not change as much, s"},
		{"image_rebuild_noop", noop, "s", 5, 0, "build of debian with nothing changed"},
	}, nil
}

// spent adds to all what do has used of what is counted.
func spent(all *[]float64, do func() error, count func() (float64, error)) error {
	before, err := count()
	if err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	after, err := count()
	*all = append(*all, after-before)
	return err
}

// inHost makes a command that runs in the network namespace that this program was started in.
func inHost(name string, args ...string) *exec.Cmd {
	if os.Getenv(inside) == "" {
		return exec.Command(name, args...)
	}
	return exec.Command("nsenter", append([]string{"--net=/proc/" + strconv.Itoa(os.Getppid()) + "/ns/net", name}, args...)...)
}

func (b *bench) outside(args ...string) error {
	c := inHost(filepath.Join(b.bin, "banger"), args...)
	c.Env = b.env()
	c.Stderr = os.Stderr // no pipe: a daemon that it starts would hold it
	return c.Run()
}

// bareImage makes what m describes, but for its files, with no more than the tools.
func bareImage(m image.Manifest, dir string) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	sources, err := apt.HostSources(apt.Etc, m.Release)
	if err != nil {
		return err
	}
	options, err := apt.Options(context.Background())
	if err != nil {
		return err
	}
	args := []string{"--quiet", "--mode=root", "--variant=" + m.Variant, "--include=" + strings.Join(m.Packages, ","),
		"--architectures=amd64", "--skip=output/dev", "--dpkgopt=force-unsafe-io", "--format=directory"}
	for _, o := range options {
		args = append(args, "--aptopt="+o)
	}
	tree, fs, list := filepath.Join(dir, "tree"), filepath.Join(dir, "fs"), ""
	for _, s := range sources {
		list += s.Line() + "\n"
	}
	c := inHost("mmdebstrap", append(args, m.Release, tree, "-")...)
	c.Env = append(os.Environ(), "TMPDIR="+dir)
	c.Stdin, c.Stderr = strings.NewReader(list), os.Stderr
	if err := c.Run(); err != nil {
		return err
	}
	f, err := os.Create(fs)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(m.Bytes), f.Close()); err != nil {
		return err
	}
	return exec.Command("mkfs.ext4", "-q", "-F", "-d", tree, fs).Run()
}
