package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"banger/internal/guest/proto"
	"banger/internal/host"
)

// firecrackerFigures measures a VM of Firecracker's against Firecracker by hand, and against
// QEMU with KVM.
func firecrackerFigures(b *bench) ([]Figure, error) {
	if kvm := host.ProbeKVM("/"); !kvm.Usable {
		fmt.Printf("SKIP: firecracker: no KVM: %s\n", kvm.Reason)
		return nil, nil
	}
	if _, err := host.LookPath("firecracker"); err != nil {
		fmt.Printf("SKIP: firecracker: %v\n", err)
		return nil, nil
	}
	const n = 5
	hand, overhead, err := b.firecrackerByHand(n)
	if err != nil {
		return nil, err
	}
	run := func(backend string) func() error {
		return func() error {
			_, err := b.banger("run", "--rm", "--backend", backend, "--net", "none", "--image", "tiny", "--", "true")
			return err
		}
	}
	ours, bare, err := inTurn(n, run("firecracker"), hand.untilReady)
	if err != nil {
		return nil, err
	}
	figures := []Figure{
		{"fc_cold_ratio", ours / bare, "ratio", n, 1.15, fmt.Sprintf("%.2f s against %.2f s of the same Firecracker by hand until the agent's knock", ours, bare)},
		{"fc_overhead", overhead, "MiB", 1, 8, "resident memory of the VMM beyond the guest's"},
	}
	firecracker, qemu, err := inTurn(3, run("firecracker"), run("qemu"))
	if err != nil {
		return nil, err
	}
	return append(figures, Figure{"fc_vs_qemu", firecracker / qemu, "ratio", 3, 1, fmt.Sprintf("%.2f s against %.2f s of QEMU with KVM", firecracker, qemu)}), nil
}

// fcByHand is the Firecracker of a VM, in a directory of ours, with a disk for each start.
type fcByHand struct {
	dir    string
	config map[string]any
	disks  []string
}

// firecrackerByHand takes the configuration of a VM that runs, and measures that VM's memory.
func (b *bench) firecrackerByHand(starts int) (m *fcByHand, overhead float64, err error) {
	m = &fcByHand{dir: filepath.Join(b.scratch, "fc-by-hand")}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, 0, err
	}
	images, err := b.images()
	if err != nil {
		return nil, 0, err
	}
	for i := range starts {
		disk := filepath.Join(m.dir, fmt.Sprintf("disk-%d", i))
		if _, err := b.command("cp", "--sparse=always", images["tiny"].Path, disk); err != nil {
			return nil, 0, err
		}
		if err := os.Chmod(disk, 0o600); err != nil {
			return nil, 0, err
		}
		m.disks = append(m.disks, disk)
	}
	err = b.withVM(func(name string) error {
		vm, err := b.vm(name)
		if err != nil {
			return err
		}
		if overhead, err = vmmMiB(vm.PID, vm.MemoryBytes); err != nil {
			return err
		}
		client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(vm.Directory, "run/api.sock"))
		}}}
		answer, err := client.Get("http://firecracker/vm/config")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if err := json.NewDecoder(answer.Body).Decode(&m.config); err != nil {
			return err
		}
		for _, d := range m.config["drives"].([]any) { // known to it by links
			drive := d.(map[string]any)
			if drive["path_on_host"], err = os.Readlink(filepath.Join(vm.Directory, drive["path_on_host"].(string))); err != nil {
				return err
			}
		}
		return nil
	}, "--backend", "firecracker", "--net", "none")
	return m, overhead, err
}

// untilReady starts the machine by hand, and ends it when its agent knocks.
func (m *fcByHand) untilReady() error {
	disk := m.disks[0]
	m.disks = m.disks[1:]
	m.config["drives"].([]any)[0].(map[string]any)["path_on_host"] = disk
	config, err := json.Marshal(m.config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(m.dir, "config.json"), config, 0o600); err != nil {
		return err
	}
	vsock := filepath.Join(m.dir, m.config["vsock"].(map[string]any)["uds_path"].(string))
	knock := fmt.Sprintf("%s_%d", vsock, proto.VsockPort)
	if err := os.MkdirAll(filepath.Dir(vsock), 0o700); err != nil {
		return err
	}
	for _, stale := range []string{vsock, knock} {
		if err := os.Remove(stale); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	l, err := net.Listen("unix", knock)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.(*net.UnixListener).SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	c := exec.Command("firecracker", "--id", "by-hand", "--no-api", "--config-file", "config.json")
	c.Dir = m.dir
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return err
	}
	defer func() {
		c.Process.Kill()
		c.Wait() // says only that it was killed
	}()
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	return conn.Close()
}

// vmmMiB is the memory that a VMM has resident beside that of its guest, in MiB.
func vmmMiB(pid int, guest int64) (float64, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, err
	}
	var sum, size float64
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		kib, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			return 0, err
		}
		switch f[0] {
		case "Size:":
			size = kib
		case "Rss:":
			if size*1024 < float64(guest)/2 { // the guest's memory is the one mapping as large
				sum += kib
			}
		}
	}
	return sum / 1024, lines.Err()
}
