package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
)

// removeLimit bounds how long a machine without a record may take to answer on its monitor.
const removeLimit = 15 * time.Second

// Remove ends the machine that was launched in dir for the VM, if there is one, and removes
// its sockets and its cgroup; its logs stay. Without a record (a crash came between launch and record) the
// machine is found by the monitor in that directory, and ended only if it answers to the
// VM's id. Finding nothing is success.
func (h *Hypervisor) Remove(ctx context.Context, vmID, dir string, rec *hypervisor.Record) error {
	var err error
	if rec != nil {
		err = rec.Process.Kill(ctx)
	} else {
		err = quitByMonitor(ctx, vmID, dir)
	}
	if err != nil {
		return fmt.Errorf("end the machine of VM %s: %w", vmID, err)
	}
	return clear(dir)
}

// quitByMonitor asks the machine itself who it is. Its listening socket is older than the
// process, so a machine that is only just starting answers too, once it can.
func quitByMonitor(ctx context.Context, vmID, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	conn, err := dial(ctx, dir, monitorSocket)
	if errors.Is(err, fs.ErrNotExist) { // the sockets are made before the process
		return nil
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return gone(ctx, dir)
	}
	if err != nil {
		return err
	}
	m, err := newMonitor(ctx, conn, func(string, json.RawMessage) {})
	if err != nil {
		if ctx.Err() == nil { // it hung up: the process died before it could answer
			return gone(ctx, dir)
		}
		return err
	}
	defer m.Close()
	var name struct{ Name string }
	if err := m.Execute(ctx, "query-name", nil, &name); err != nil {
		return err
	}
	if name.Name != machineName(vmID) {
		return errs.New(errs.Conflict, "the machine in %s calls itself %q", dir, name.Name)
	}
	if err := m.Execute(ctx, "quit", nil, nil); err != nil && ctx.Err() != nil {
		return err
	}
	return gone(ctx, dir)
}

// gone waits for the end of what runs in dir, of which the monitor was the only proof: QEMU
// closes that before the kernel has taken the process apart, and a process that dies still
// has its files open.
func gone(ctx context.Context, dir string) error {
	left, err := host.ProcessesIn(filepath.Dir(dir))
	if err != nil {
		return err
	}
	for _, o := range left {
		if o.Path != filepath.Base(dir) {
			continue
		}
		handle, err := o.Process.Open()
		if errs.KindOf(err) == errs.NotFound {
			continue
		}
		if err != nil {
			return err
		}
		err = handle.Wait(ctx)
		handle.Close()
		if err != nil {
			return fmt.Errorf("process %d in %s does not end, nor say who it is: %w", o.Process.PID, dir, err)
		}
	}
	return nil
}
