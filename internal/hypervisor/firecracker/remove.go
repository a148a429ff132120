package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
)

// removeLimit bounds how long a machine without a record may take to make its socket.
const removeLimit = 15 * time.Second

// Remove ends the machine that was launched in dir for the VM, if there is one, and removes
// its sockets, pipes and cgroup; its logs stay. Without a record (a crash came between launch and
// record) the machine is found by its API's socket, and ended only if it answers to the VM's
// id. Finding nothing is success.
func (h *Hypervisor) Remove(ctx context.Context, vmID, dir string, rec *hypervisor.Record) error {
	var err error
	if rec != nil {
		err = rec.Process.Kill(ctx)
	} else {
		err = killBySocket(ctx, vmID, dir)
	}
	if err != nil {
		return fmt.Errorf("end the machine of VM %s: %w", vmID, err)
	}
	return clear(dir)
}

// killBySocket ends the machine in dir, of which nothing is known but that.
func killBySocket(ctx context.Context, vmID, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	running, err := machineIn(dir)
	if err != nil || running == nil {
		return err
	}
	handle, err := running.Open()
	if errs.KindOf(err) == errs.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	defer handle.Close()
	process, err := askWho(ctx, vmID, dir, handle.Done())
	if err == nil {
		return process.Kill(ctx)
	}
	// One that is dying breaks off first, and has ended a moment later.
	if errs.KindOf(err) != errs.Conflict && handle.Wait(ctx) == nil {
		return nil
	}
	return err
}

// askWho asks the kernel who listens on the API's socket, once somebody does, and that process
// who it is. It is given up when the machine has ended: one that has makes no socket any more.
func askWho(ctx context.Context, vmID, dir string, ended <-chan struct{}) (host.Process, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := awaitAPI(ctx, dir); err != nil {
		return host.Process{}, err
	}
	process, err := listenerOf(ctx, dir)
	if err != nil {
		return host.Process{}, err
	}
	api := newClient(func(ctx context.Context) (net.Conn, error) { return dial(ctx, dir, apiSocket) })
	defer api.close()
	i, err := api.instance(ctx)
	if err == nil && i.ID != machineName(vmID) {
		err = errs.New(errs.Conflict, "the machine in %s calls itself %q", dir, printable(i.ID))
	}
	return process, err
}

// machineIn returns the process of a machine of ours in dir, nil if there is none. Another VMM's
// has no such pipes; ours are made before the process.
func machineIn(dir string) (*host.Process, error) {
	if _, err := os.Lstat(filepath.Join(dir, logPipe)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	found, err := host.ProcessesIn(filepath.Dir(dir))
	for _, o := range found {
		if o.Path == filepath.Base(dir) {
			return &o.Process, nil
		}
	}
	return nil, err
}

// listenerOf returns the process that listens on the API's socket.
func listenerOf(ctx context.Context, dir string) (host.Process, error) {
	conn, err := dial(ctx, dir, apiSocket)
	if err != nil {
		return host.Process{}, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return host.Process{}, err
	}
	var peer *unix.Ucred
	var asked error
	if err := raw.Control(func(fd uintptr) { peer, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return host.Process{}, err
	}
	if asked != nil {
		return host.Process{}, asked
	}
	return host.Identify(int(peer.Pid))
}

// awaitAPI waits until Firecracker takes connections on the API's socket in dir.
func awaitAPI(ctx context.Context, dir string) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	defer w.Close()
	if err := w.Add(filepath.Join(dir, socketDir)); err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	// Watched before it is looked for, so that no arrival is missed. Its name comes a moment
	// before it listens, and nothing tells of that.
	const moment = time.Millisecond
	for {
		conn, err := dial(ctx, dir, apiSocket)
		if err == nil {
			return conn.Close()
		}
		var soon <-chan time.Time
		if errors.Is(err, syscall.ECONNREFUSED) {
			soon = time.After(moment)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-w.Events:
		case <-soon:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
