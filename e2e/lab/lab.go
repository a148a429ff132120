package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"banger/api"
	"banger/internal/image"
)

const (
	vmName    = "lab"
	imageName = "lab"
	memory    = "3G"
	// Where it is translated it keeps to one CPU of the host's (unsafeSVM in hypervisor/qemu
	// says why), on which a second would only wait for the first.
	cpus  = "1"
	inLab = "/opt/banger" // what is copied into the lab

	// downLimit bounds the removal of the lab, which also comes after an interrupt.
	downLimit = 2 * time.Minute
)

// lab is the lab's VM, in a state directory of its own.
type lab struct {
	root   string // of the checkout
	state  string
	banger string // the built command
}

func newLab() (*lab, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(root, "e2e/lab")); err != nil {
		return nil, fmt.Errorf("the lab is run in the checkout's root: %w", err)
	}
	return &lab{root: root, state: filepath.Join(root, "build/lab/state"), banger: filepath.Join(root, "build/bin/banger")}, nil
}

// tests is the directory of the compiled suites.
func (l *lab) tests() string { return filepath.Join(l.root, "build/lab/tests") }

// prepare makes a command of banger's. An interrupt lets it clean up.
func (l *lab) prepare(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, l.banger, args...)
	c.Env = append(os.Environ(), "BANGER_STATE_DIR="+l.state, "BANGER_SOCKET=", "BANGER_RUNTIME_DIR="+filepath.Join(l.root, "runtime"),
		"BANGER_TEMPLATE_BUDGET=0") // a lab is booted once, and no other beside it
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 30 * time.Second
	return c
}

// command runs banger; what it says goes to standard error.
func (l *lab) command(ctx context.Context, args ...string) error {
	c := l.prepare(ctx, args...)
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	if err := c.Run(); err != nil {
		return fmt.Errorf("banger %s: %w", args[0], err)
	}
	return nil
}

// exec runs a command in the lab.
func (l *lab) exec(ctx context.Context, out, errOut io.Writer, argv []string) error {
	c := l.prepare(ctx, append([]string{"exec", vmName, "--"}, argv...)...)
	c.Stdout, c.Stderr = out, errOut
	return c.Run()
}

// query runs banger and reads its JSON.
func (l *lab) query(ctx context.Context, into any, args ...string) error {
	c := l.prepare(ctx, args...)
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err == nil {
		err = json.Unmarshal(out, into)
	}
	if err != nil {
		return fmt.Errorf("banger %s: %w", args[0], err)
	}
	return nil
}

// up boots the lab unless it runs, from an image that is built if there is none of its
// manifest.
func (l *lab) up(ctx context.Context) error {
	if err := os.MkdirAll(l.state, 0o700); err != nil {
		return err
	}
	var vms []api.VM
	if err := l.query(ctx, &vms, "ls", "-a", "--json"); err != nil {
		return err
	}
	for _, vm := range vms {
		if vm.Name == vmName && vm.State == api.StateRunning {
			return nil
		}
	}
	if err := l.down(); err != nil { // what is left of one that failed
		return err
	}
	if err := l.buildImage(ctx); err != nil {
		return err
	}
	// QEMU's own network changes nothing of this host, which may have no bridge.
	return l.command(ctx, "run", "-d", "--nested", "--net", "user", "--name", vmName, "--image", imageName, "--memory", memory, "--cpus", cpus)
}

// buildImage makes what the lab and the VMs in it are started from.
func (l *lab) buildImage(ctx context.Context) error {
	if err := os.MkdirAll(l.state, 0o700); err != nil {
		return err
	}
	manifest, err := image.BuiltIn(imageName)
	if err != nil {
		return err
	}
	var images []api.Image
	if err := l.query(ctx, &images, "image", "ls", "--json"); err != nil {
		return err
	}
	for _, i := range images {
		if i.Name == imageName && i.ManifestHash != manifest.Hash() {
			if err := l.command(ctx, "runtime", "build", "--force", "image/"+imageName); err != nil {
				return err
			}
		}
	}
	return l.command(ctx, "runtime", "build", "kernel/debian", "image/tiny", "image/"+imageName)
}

// down removes the lab and ends its daemon. It also does so after an interrupt.
func (l *lab) down() error {
	if _, err := os.Stat(l.state); err != nil {
		return nil // there never was one
	}
	ctx, cancel := context.WithTimeout(context.Background(), downLimit)
	defer cancel()
	var vms []api.VM
	if err := l.query(ctx, &vms, "ls", "-a", "--json"); err != nil {
		return err
	}
	for _, vm := range vms {
		if err := l.command(ctx, "rm", "-f", vm.ID); err != nil {
			return err
		}
	}
	return l.stopDaemon()
}

func (l *lab) stopDaemon() error {
	ctx, cancel := context.WithTimeout(context.Background(), downLimit)
	defer cancel()
	return l.command(ctx, "daemon", "stop")
}

// showConsole prints what the lab's console said last.
func (l *lab) showConsole() {
	ctx, cancel := context.WithTimeout(context.Background(), downLimit)
	defer cancel()
	c := l.prepare(ctx, "logs", vmName)
	out, err := c.CombinedOutput()
	const most = 4 << 10
	fmt.Fprintf(os.Stderr, "the lab's console said last (%v):\n%s\n", err, out[max(0, len(out)-most):])
}

func (l *lab) goTool(ctx context.Context, args ...string) error {
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir, c.Env = l.root, append(os.Environ(), "CGO_ENABLED=0")
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	if err := c.Run(); err != nil {
		return fmt.Errorf("go %q: %w", args, err)
	}
	return nil
}
