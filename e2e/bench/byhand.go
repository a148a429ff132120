package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/internal/disk"
	"banger/internal/disk/qcow2"
)

// byHand is the QEMU command line of a VM without a network, with sockets of ours for its
// channel.
type byHand struct {
	program, dir string
	args         []string
	base         disk.Base
	overlay      string   // a fresh disk to copy, instead of one made on base
	tap          *os.File // nil without a network
}

// machineByHand takes the command line from a VM that runs, made with these flags too.
func (b *bench) machineByHand(flags ...string) (*byHand, error) {
	m := &byHand{dir: filepath.Join(b.scratch, "by-hand")}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, err
	}
	err := b.withVM(func(name string) error {
		vm, err := b.vm(name)
		if err != nil {
			return err
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", vm.PID))
		if err != nil {
			return err
		}
		if m.program, err = os.Readlink(fmt.Sprintf("/proc/%d/exe", vm.PID)); err != nil {
			return err
		}
		images, err := b.images()
		if err != nil {
			return err
		}
		m.base = disk.Base{Path: images["tiny"].Path, Bytes: images["tiny"].VirtualBytes}
		line := strings.ReplaceAll(strings.TrimSuffix(string(raw), "\x00"), vm.Directory, m.dir)
		m.args = strings.Split(line, "\x00")[1:]
		return nil
	}, append([]string{"--backend", "qemu", "--net", "none"}, flags...)...)
	return m, err
}

// withTAP is the same machine with a network device at a TAP.
func (m *byHand) withTAP(tap *os.File, mac string) *byHand {
	with := *m
	with.tap = tap
	with.args = append(m.args[:len(m.args):len(m.args)],
		"-netdev", fmt.Sprintf("tap,fd=%d,id=net0", 3+len(handSockets)), "-device", "virtio-net-pci,netdev=net0,romfile=,mac="+mac)
	return &with
}

// handSockets are the machine's, as descriptors from 3 on.
var handSockets = []string{"monitor", "console", "channel"}

func (m *byHand) makeDisk() error {
	if m.overlay == "" {
		_, err := (qcow2.Driver{}).Clone(context.Background(), m.base, disk.Spec{Home: disk.Home{Dir: m.dir}})
		return err
	}
	fresh, err := os.ReadFile(m.overlay)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(m.dir, filepath.Base(m.overlay)), fresh, 0o600)
}

// run starts the machine with a fresh disk, calls do with its process and its channel's
// socket, and ends it.
func (m *byHand) run(do func(c *exec.Cmd, channel string) error) error {
	if err := m.makeDisk(); err != nil {
		return err
	}
	var files []*os.File
	var path string
	for _, name := range handSockets {
		path = filepath.Join(m.dir, name+".hand")
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		f, err := l.(*net.UnixListener).File()
		l.Close()
		if err != nil {
			return err
		}
		defer f.Close()
		files = append(files, f)
	}
	if m.tap != nil {
		files = append(files, m.tap)
	}
	c := exec.Command(m.program, m.args...)
	c.ExtraFiles = files
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return err
	}
	defer func() {
		c.Process.Kill()
		c.Wait() // says only that it was killed
	}()
	return do(c, path)
}

// untilReady starts the machine, calls then at the first byte on its channel, and ends it.
func (m *byHand) untilReady(then func(*exec.Cmd) error) error {
	return m.run(func(c *exec.Cmd, channel string) error {
		conn, err := net.Dial("unix", channel)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
			return err
		}
		if _, err = io.ReadFull(conn, make([]byte, 1)); err != nil {
			return err
		}
		return then(c)
	})
}
