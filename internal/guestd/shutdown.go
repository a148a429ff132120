package guestd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/staticelf"
)

// Signals by which systemd, and the small init here, are asked to end the machine.
// SIGRTMIN is 34 to everyone who uses the C library.
const (
	sigPowerOff = unix.Signal(34 + 4)
	sigReboot   = unix.Signal(34 + 5)
)

// systemdSocket appears once systemd can be asked for things, by signals too.
const systemdSocket = "/run/systemd/private"

// systemdTimeout bounds the wait for a systemd that is still starting, or that waits for
// the machine to be configured.
const systemdTimeout = configureTimeout + 30*time.Second

// powerOff is how a process ends the machine.
func (a bootArgs) powerOff() int {
	if a.restart {
		return unix.LINUX_REBOOT_CMD_RESTART
	}
	return unix.LINUX_REBOOT_CMD_POWER_OFF
}

// restartProgram ends the machine: sync(2), then reboot(2) with RESTART.
const restartProgram = "\xb8\xa2\x00\x00\x00\x0f\x05" + // mov eax, 162; syscall
	"\xbf\xad\xde\xe1\xfe" + // mov edi, 0xfee1dead
	"\xbe\x69\x19\x12\x28" + // mov esi, 0x28121969
	"\xba\x67\x45\x23\x01" + // mov edx, 0x01234567
	"\xb8\xa9\x00\x00\x00\x0f\x05" + // mov eax, 169; syscall
	"\xeb\xfe" // it does not return; if it does, wait here

// installRestart has systemd end, by whatever verb, in a restart: with its filesystems
// unmounted it hands over to the initramfs that it believes to have come from, which lies in
// /run.
func installRestart(run string) error {
	dir := filepath.Join(run, "initramfs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "shutdown"), staticelf.Program([]byte(restartProgram)), 0o755)
}

// Shutdown asks the image's init.
func (l *Linux) Shutdown(init string, reboot bool) error {
	unix.Sync()
	sig := sigPowerOff
	if reboot {
		sig = sigReboot
	}
	if init == "" {
		return os.NewSyscallError("kill", unix.Kill(1, sig))
	}
	if isSystemd(init) {
		ctx, cancel := context.WithTimeout(context.Background(), systemdTimeout)
		defer cancel()
		if err := awaitFile(ctx, systemdSocket); err != nil {
			return fmt.Errorf("wait for systemd: %w", err)
		}
		return os.NewSyscallError("kill", unix.Kill(1, sig))
	}
	// Its own program knows best how to talk to it.
	name := "poweroff"
	if reboot = reboot || l.restart; reboot {
		name = "reboot"
	}
	path, err := lookPath(name, rootPath, "/")
	if err != nil {
		return killInit(reboot)
	}
	var out []byte
	err = l.Exposed(func() error {
		var err error
		out, err = exec.Command(path).CombinedOutput()
		return err
	})
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w: %s", path, err, out), killInit(reboot))
	}
	return nil
}

// killInit uses the signals that busybox init and most small ones know.
func killInit(reboot bool) error {
	sig := unix.SIGUSR2
	if reboot {
		sig = unix.SIGTERM
	}
	return os.NewSyscallError("kill", unix.Kill(1, sig))
}

const rootPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// WaitBoot asks systemd, once it can be asked. Other inits can't tell: they run.
func (l *Linux) WaitBoot(ctx context.Context, init string) (string, error) {
	if !isSystemd(init) {
		return "running", nil
	}
	if err := awaitFile(ctx, systemdSocket); err != nil {
		return "", fmt.Errorf("wait for systemd: %w", err)
	}
	path, err := lookPath("systemctl", rootPath, "/")
	if err != nil {
		return "unknown", nil
	}
	cmd := exec.CommandContext(ctx, path, "is-system-running", "--wait")
	var out strings.Builder
	cmd.Stdout = &out
	if err := l.Exposed(cmd.Start); err != nil {
		return "", fmt.Errorf("start systemctl: %w", err)
	}
	// Its status is 1 for "degraded" and others; its word says all.
	if err := cmd.Wait(); err != nil && out.Len() == 0 {
		return "", fmt.Errorf("systemctl is-system-running: %w", err)
	}
	return strings.TrimSpace(out.String()), nil
}

// isSystemd tells from the program's name: /sbin/init is a link to it.
func isSystemd(init string) bool {
	path, err := filepath.EvalSymlinks(init)
	return err == nil && filepath.Base(path) == "systemd"
}

// awaitFile waits until an absolute path exists, by watching the directories above it.
func awaitFile(ctx context.Context, path string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	defer context.AfterFunc(ctx, func() { events.Close() })()
	buf := make([]byte, 4096)
	for {
		// Watched before it is looked for, so that no arrival is missed.
		for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
			_, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.ENOENT) || dir == "/" {
				return &os.PathError{Op: "watch", Path: dir, Err: err}
			}
		}
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		if _, err := events.Read(buf); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
	}
}
