package guestd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"banger/internal/guest/proto"
)

// The agent sets addresses by netlink before the image's init starts. What an image may have
// of its own to configure interfaces with is then told, in /run, which every boot begins
// without: it finds the interface done, and nothing in the image is changed.
//
//	systemd-networkd   a .network file that says what is so already; the first in order wins
//	NetworkManager     the device is not its to manage, nor is resolv.conf
//	ifupdown           the interface counts as brought up
//	systemd-resolved   see setResolver
const (
	networkdFile = "run/systemd/network/00-banger.network"
	managerFile  = "run/NetworkManager/conf.d/00-banger.conf"
	ifstateFile  = "run/network/ifstate"
)

// writeNetFiles writes what keeps the image's own network programs from undoing what the
// agent did.
func (r rootfs) writeNetFiles(c proto.Configure) error {
	if len(c.Links) == 0 {
		return nil
	}
	files := map[string]string{
		managerFile:  managerConf(c.Links),
		networkdFile: networkdConf(c.Links[0], c.Nameservers, c.Search),
	}
	var all []error
	for name, text := range files {
		all = append(all, r.write(name, []byte(text), 0o644))
	}
	return errors.Join(append(all, r.writeIfstate(len(c.Links)))...)
}

func networkdConf(l proto.Link, nameservers, search []string) string {
	var b strings.Builder
	b.WriteString("[Match]\nMACAddress=" + l.MAC + "\n\n[Network]\nDHCP=no\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nKeepConfiguration=yes\n")
	for _, a := range l.Addresses {
		b.WriteString("Address=" + a + "\n")
	}
	for _, n := range nameservers {
		b.WriteString("DNS=" + n + "\n")
	}
	if len(search) > 0 {
		b.WriteString("Domains=" + strings.Join(search, " ") + "\n")
	}
	if l.Gateway != "" {
		b.WriteString("\n[Route]\nGateway=" + l.Gateway + "\nGatewayOnLink=yes\n")
	}
	return b.String()
}

func managerConf(links []proto.Link) string {
	var devices []string
	for _, l := range links {
		devices = append(devices, "mac:"+l.MAC)
	}
	return "[main]\ndns=none\n\n[keyfile]\nunmanaged-devices=" + strings.Join(devices, ";") + "\n"
}

// writeIfstate tells ifupdown, where an image has it, that the interfaces are up. They are
// called eth0, eth1…, for the kernel's command line forbids to rename them.
func (r rootfs) writeIfstate(links int) error {
	if _, err := r.read("etc/network/interfaces"); err != nil {
		return nil // nothing would read it
	}
	old, err := r.read(ifstateFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := string(old)
	var all []error
	for i := range links {
		name := fmt.Sprintf("eth%d", i)
		line := name + "=" + name + "\n"
		if !strings.Contains("\n"+text, "\n"+line) {
			text += line
		}
		all = append(all, r.write(ifstateFile+"."+name, []byte(line), 0o644)) // what newer ones read
	}
	return errors.Join(append(all, r.write(ifstateFile, []byte(text), 0o644))...)
}

// ReloadNetwork has programs that run in the image read anew what writeNetFiles wrote for
// them. Before the image's init has started there are none.
func (l *Linux) ReloadNetwork(init string) {
	if !isSystemd(init) {
		return
	}
	for _, unit := range []string{"systemd-networkd.service", "systemd-resolved.service"} {
		// systemd leaves this link for as long as a unit runs. To ask it by a program takes longer.
		if _, err := os.Lstat("/run/systemd/units/invocation:" + unit); err != nil {
			continue
		}
		path, err := lookPath("systemctl", rootPath, "/")
		if err != nil {
			return
		}
		cmd := exec.Command(path, "try-restart", unit) // does nothing to what does not run
		if err := l.Exposed(cmd.Start); err == nil {
			_ = cmd.Wait() // what it can't restart goes on with what it knew
		}
	}
}
