package guestd

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/guest/proto"
)

// sysroot is where the image's root is mounted until it becomes the root.
const sysroot = "/sysroot"

// bootArgs are banger's kernel arguments.
type bootArgs struct {
	root    string // banger.root: device of the root filesystem
	modules string // banger.modules: device of the kernel's modules; may be empty
	init    string // banger.init: the image's init; empty to look for one
	restart bool   // the machine's only end is a restart
}

func parseBootArgs(cmdline string) bootArgs {
	var args bootArgs
	for word := range strings.FieldsSeq(cmdline) {
		if word == proto.NoPowerSwitch {
			args.restart = true
		}
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "banger.root":
			args.root = value
		case "banger.modules":
			args.modules = value
		case "banger.init":
			args.init = value
		}
	}
	return args
}

// mount is one call of mount(2).
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
	}
	return nil
}

const noSuid = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV

// kernelMounts are needed by anything at all.
func kernelMounts() []mount {
	return []mount{
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"proc", "/proc", "proc", noSuid, ""},
		{"sysfs", "/sys", "sysfs", noSuid, ""},
	}
}

// rootMounts are made in the image's root, for the agent and any init; systemd takes them
// as it finds them.
func rootMounts() []mount {
	return []mount{
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
	}
}

// ownMounts are those of an image without an init.
func ownMounts() []mount {
	return []mount{
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", noSuid, ""},
	}
}

// Boot is the first process of the machine. It never returns while the machine lives: it
// becomes the image's init, or stays as a small one.
func Boot() error {
	for _, m := range kernelMounts() {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := openConsole(); err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	args := parseBootArgs(string(cmdline))
	if args.root == "" {
		return errors.New("the kernel's command line has no banger.root")
	}
	if err := mountDisks(string(cmdline), args); err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return err
	}
	for _, m := range rootMounts() {
		if err := m.do(); err != nil {
			complain(err) // an image may do without
		}
	}
	if init := cmp.Or(args.init, findInit()); init != "" {
		if args.restart {
			if err := installRestart("/run"); err != nil {
				complain(err)
			}
		}
		if err := awaitConfigured(init); err != nil {
			return err
		}
		return becomeInit(init)
	}
	for _, m := range ownMounts() {
		if err := m.do(); err != nil {
			complain(err)
		}
	}
	return runInit(args)
}

// awaitConfigured starts the agent, and returns once the host has configured the machine:
// an init reads its files.
func awaitConfigured(init string) error {
	_, ready, err := startAgent(init)
	if err != nil {
		return err
	}
	defer unix.Close(ready)
	if err := awaitReady(ready); err != nil {
		complain(err)
	}
	return nil
}

// openConsole gives this process the console as its standard files: the initramfs had no
// device for it.
func openConsole() error {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EIO) {
		return nil // a machine without one
	}
	if err != nil {
		return fmt.Errorf("open the console: %w", err)
	}
	for i := range 3 {
		if err := unix.Dup3(fd, i, 0); err != nil && fd != i {
			return fmt.Errorf("open the console: %w", err)
		}
	}
	if fd > 2 {
		unix.Close(fd)
	}
	return nil
}

// complain tells of what the machine can do without.
func complain(err error) { fmt.Fprintln(os.Stderr, "banger-guest:", err) }

func mountDisks(cmdline string, args bootArgs) error {
	events, err := openUevents()
	if err != nil {
		return err
	}
	defer events.close()
	rest, err := loadModules(cmdline)
	if err != nil {
		return err
	}
	if err := awaitDevice(events, args.root); err != nil {
		return fmt.Errorf("root device %s: %w", args.root, err)
	}
	if err := (mount{args.root, sysroot, "ext4", unix.MS_NOATIME, ""}).do(); err != nil {
		return err
	}
	if args.modules != "" {
		if err := mountModules(events, args.modules); err != nil {
			complain(fmt.Errorf("kernel modules: %w", err))
		}
	}
	return rest()
}

func awaitDevice(events *uevents, path string) error {
	return events.await(deviceTimeout, func() bool {
		_, err := os.Stat(path)
		return err == nil
	})
}

// mountModules mounts the kernel's modules where the image's programs look for them; /lib
// is a link to usr/lib in most images.
func mountModules(events *uevents, device string) error {
	if err := awaitDevice(events, device); err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	release, _, err := kernelAndUptime()
	if err != nil {
		return err
	}
	dir, err := rootfs(sysroot).resolve("lib/modules/" + release)
	if err != nil {
		return err
	}
	return mount{device, dir, "ext4", unix.MS_RDONLY | unix.MS_NOATIME, ""}.do()
}

// switchRoot makes the image's root the root, and frees the initramfs.
func switchRoot() error {
	for _, m := range kernelMounts() {
		if err := (mount{m.target, sysroot + m.target, "", unix.MS_MOVE, ""}).do(); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if "/"+e.Name() != sysroot {
			os.RemoveAll("/" + e.Name()) // only memory is lost if that fails
		}
	}
	if err := os.Chdir(sysroot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	return os.Chdir("/")
}

// findInit looks for the image's init where the kernel and initramfs tools do.
func findInit() string {
	for _, path := range []string{"/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/init", "/bin/init"} {
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// becomeInit runs the image's init in this process.
func becomeInit(init string) error {
	err := syscall.Exec(init, []string{filepath.Base(init)}, []string{"TERM=linux", "HOME=/", "PATH=" + rootPath})
	return fmt.Errorf("run the image's init %s: %w", init, err)
}

// Abort ends a machine that can't start. The VMM is told not to reboot, so it exits and
// the host sees the console's last line.
func Abort(cause error) {
	complain(cause)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
