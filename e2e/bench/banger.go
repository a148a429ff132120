package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"banger/api"
)

// bench is a banger of its own to measure.
type bench struct {
	bin     string // directory of the programs
	state   string
	scratch string
	budget  string // of templates; empty: none are made while something else is measured
	pool    string // which VMs are kept ready
	client  *api.Client
}

func newBench() (*bench, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	// BANGER_BIN names the programs where there is no checkout, as in the lab.
	b := &bench{bin: cmp.Or(os.Getenv("BANGER_BIN"), filepath.Join(root, "build", "bin"))}
	if b.state, err = os.MkdirTemp("", "banger-bench-"); err != nil {
		return nil, err
	}
	b.scratch = filepath.Join(b.state, "scratch")
	b.client = api.New(filepath.Join(b.state, "bangerd.sock"))
	return b, os.Mkdir(b.scratch, 0o700)
}

func (b *bench) close() error {
	_, err := b.banger("daemon", "stop")
	return errors.Join(err, os.RemoveAll(b.state))
}

func (b *bench) env() []string {
	return append(os.Environ(), "BANGER_STATE_DIR="+b.state, "BANGER_HOSTS_FILE="+filepath.Join(b.scratch, "hosts"),
		"BANGER_TEMPLATE_BUDGET="+cmp.Or(b.budget, "0"), "BANGER_POOL="+b.pool)
}

// banger runs the built command and returns its output.
func (b *bench) banger(args ...string) (string, error) {
	return b.command(filepath.Join(b.bin, "banger"), args...)
}

func (b *bench) command(name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	c.Env = b.env()
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %q: %w\n%s", filepath.Base(name), args, err, errOut.String())
	}
	return out.String(), nil
}

// background runs a command that leaves a process behind, which may keep no pipe of ours.
func (b *bench) background(name string, args ...string) error {
	c := exec.Command(name, args...)
	c.Env = b.env()
	if err := c.Run(); err != nil {
		return fmt.Errorf("%s %q: %w", filepath.Base(name), args, err)
	}
	return nil
}

// withVM runs do beside a running tiny VM.
func (b *bench) withVM(do func(name string) error, args ...string) error {
	const name = "bench"
	if _, err := b.banger(append([]string{"run", "-d", "--image", "tiny", "--name", name}, args...)...); err != nil {
		return err
	}
	err := do(name)
	_, rmErr := b.banger("rm", "-f", name)
	return errors.Join(err, rmErr)
}

func (b *bench) vm(name string) (api.VM, error) { return b.client.VM(context.Background(), name) }

// cpuSeconds is the processor time that a process has taken, in seconds.
func cpuSeconds(pid int) (float64, error) { return cpuFields(pid, 2) }

// cpuOfAll is that with the time of its children that have ended, and theirs.
func cpuOfAll(pid int) (float64, error) { return cpuFields(pid, 4) }

// cpuFields adds up the first n of utime, stime, cutime and cstime of a process, in seconds.
func cpuFields(pid, n int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	const userHz = 100 // of /proc on every Linux
	ticks := 0.0
	for _, f := range fields[11 : 11+n] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return ticks / userHz, nil
}

// rssMiB is the memory that a process has resident, in MiB.
func rssMiB(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, found := strings.Cut(string(raw), "VmRSS:")
	if !found {
		return 0, fmt.Errorf("process %d has no VmRSS", pid)
	}
	kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	return kib / 1024, err
}

// images returns the images by name.
func (b *bench) images() (map[string]api.Image, error) {
	out, err := b.banger("image", "ls", "--json")
	if err != nil {
		return nil, err
	}
	var all []api.Image
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, err
	}
	byName := map[string]api.Image{}
	for _, i := range all {
		byName[i.Name] = i
	}
	return byName, nil
}
