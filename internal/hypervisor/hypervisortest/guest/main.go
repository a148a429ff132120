// Command guest is the whole userspace of the machines that hypervisortest boots: PID 1
// that loads the modules of its initramfs and obeys the control channel, one word a line. It is no agent: it shows what a machine does, with nothing in between.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"banger/internal/guest/proto"
	"banger/internal/guestd/knock"
	"banger/internal/hypervisor/hypervisortest/pattern"
)

const moduleList = "/banger/modules"

// filled is memory that the host has asked to be filled.
var filled []byte

func main() {
	if err := run(); err != nil {
		fmt.Println("guest:", err)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	if hasVsock() {
		return serveVsock()
	}
	// Opened by hand: os.File would hand it to a poller whose idea of end-of-file is wrong
	// here, where the host may come back.
	path, err := channelPath()
	if err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	p, err := newPort(fd)
	if err != nil {
		return err
	}
	fmt.Println("guest: up")
	for {
		if err := p.waitForHost(); err != nil {
			return err
		}
		if err := serve(p); !errors.Is(err, io.EOF) {
			return err
		}
	}
}

// hasVsock tells whether a virtio device of kind 19, which the kernel writes in hex, is there.
func hasVsock() bool {
	kinds, _ := filepath.Glob("/sys/bus/virtio/devices/*/device") // the pattern is well-formed
	for _, kind := range kinds {
		if b, err := os.ReadFile(kind); err == nil && strings.TrimSpace(string(b)) == "0x0013" {
			return true
		}
	}
	return false
}

// serveVsock serves connections one after another, once it has told the host that it does.
func serveVsock() error {
	l, err := vsock.Listen(proto.VsockPort, nil)
	if err != nil {
		return err
	}
	fmt.Println("guest: up")
	var k knock.Knocker
	k.Knock()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		k.Knock()
		if err := serve(conn); err != nil && !errors.Is(err, io.EOF) {
			fmt.Println("guest:", err)
		}
		conn.Close()
	}
}

// loadModules loads what the list in the initramfs names, one module a line: a path, a
// tab and conditions, which are for saving time and ignored here.
func loadModules() error {
	list, err := os.ReadFile(moduleList)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(list)) {
		path, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		// ENODEV: a driver that insists on finding its device at once.
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	return nil
}

// channelPath finds the device of the virtio-serial port named banger. The port's name
// comes in a message after the driver is bound, so its file may not be there yet: the
// kernel's own uevents say when to look again.
func channelPath() (string, error) {
	events, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return "", err
	}
	defer unix.Close(events)
	if err := unix.Bind(events, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return "", err
	}
	buf := make([]byte, 8192)
	for {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return "", err
		}
		for _, name := range names {
			if b, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(b)) == "banger" {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(name))), nil
			}
		}
		if _, _, err := unix.Recvfrom(events, buf, 0); err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			return "", err
		}
	}
}

// serve obeys a host that has connected until it goes, with io.EOF. One that goes and
// comes back quickly is not noticed: the guest must not greet, as it may not know when.
func serve(p io.ReadWriter) error {
	in := bufio.NewReader(p)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		word, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "": // cut short by a host that went
		case "echo":
			fmt.Fprintln(p, arg)
		case "print": // on the console
			fmt.Println(arg)
			fmt.Fprintln(p, "ok")
		case "flood": // that many bytes to the console
			n, _ := strconv.Atoi(arg)
			row := strings.Repeat("x", 99) + "\n"
			for ; n > 0; n -= len(row) {
				os.Stdout.WriteString(row)
			}
			fmt.Fprintln(p, "ok")
		case "readline": // from the console
			text, err := bufio.NewReader(os.Stdin).ReadString('\n')
			if err != nil {
				return err
			}
			fmt.Fprintln(p, strings.TrimSpace(text))
		case "disk": // the first bytes of a disk, up to a newline
			b := make([]byte, 512)
			f, err := os.Open(filepath.Join("/dev", filepath.Base(arg)))
			if err == nil {
				_, err = io.ReadFull(f, b)
				f.Close()
			}
			text, _, _ := strings.Cut(string(b), "\n")
			fmt.Fprintln(p, text, err)
		case "fill": // that many MiB of memory, with what depends on the second word
			size, seed, _ := strings.Cut(arg, " ")
			n, _ := strconv.Atoi(size)
			filled = bytes.Repeat([]byte(seed+"-"), n<<20/(len(seed)+1))
			fmt.Fprintln(p, "ok")
		case "sum": // of the memory that was filled
			fmt.Fprintf(p, "%x\n", crc32.ChecksumIEEE(filled))
		case "forget":
			clear(filled)
			fmt.Fprintln(p, "ok")
		case "pour": // that many bytes, of no secret order
			n, _ := strconv.ParseInt(arg, 10, 64)
			if _, err := io.CopyN(p, new(pattern.Pattern), n); err != nil {
				return err
			}
		case "drink": // that many bytes, which follow, and tell their sum
			n, _ := strconv.ParseInt(arg, 10, 64)
			sum := crc32.NewIEEE()
			if _, err := io.CopyN(sum, in, n); err != nil {
				return err
			}
			fmt.Fprintf(p, "%x\n", sum.Sum32())
		case "cmdline":
			b, _ := os.ReadFile("/proc/cmdline")
			p.Write(b)
		case "poweroff":
			b, _ := os.ReadFile("/proc/cmdline")
			if strings.Contains(string(b), proto.NoPowerSwitch) {
				return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
			}
			return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		case "reboot":
			return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		case "panic":
			if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
				return err
			}
		default:
			fmt.Fprintln(p, "unknown")
		}
	}
}

// port reads and writes the virtio-serial port, which reports a hang-up for as long as
// no host is connected: level-triggered waiting would spin then, edges do not.
type port struct{ fd, epoll int }

func newPort(fd int) (*port, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET, Fd: int32(fd)}
	return &port{fd, epoll}, unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &ev)
}

func (p *port) waitEdge() error {
	_, err := unix.EpollWait(p.epoll, make([]unix.EpollEvent, 1), -1)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

func (p *port) waitForHost() error {
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 0); err == nil && fds[0].Revents&unix.POLLHUP == 0 {
			return nil
		}
		if err := p.waitEdge(); err != nil {
			return err
		}
	}
}

func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(p.fd, b)
		switch {
		case n > 0:
			return n, nil
		case errors.Is(err, unix.EAGAIN):
			if err := p.waitEdge(); err != nil {
				return 0, err
			}
		case err != nil && !errors.Is(err, unix.EINTR):
			return 0, err
		case err == nil:
			return 0, io.EOF
		}
	}
}

func (p *port) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Write(p.fd, b[done:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			if err := p.waitEdge(); err != nil {
				return done, err
			}
		case err != nil && !errors.Is(err, unix.EINTR):
			return done, err
		case n > 0:
			done += n
		}
	}
	return done, nil
}
