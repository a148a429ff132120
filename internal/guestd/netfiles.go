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
//	ifupdown           the interface counts as brought up, and its service passes over it
//	systemd-resolved   see setResolver
const (
	networkdFile = "run/systemd/network/00-banger.network"
	managerFile  = "run/NetworkManager/conf.d/00-banger.conf"
	ifstateFile  = "run/network/ifstate"
	ifupdownFile = "run/systemd/system/networking.service.d/00-banger.conf"
)

// writeNetFiles writes what keeps the image's own network programs from undoing what the
// agent did.
func (r rootfs) writeNetFiles(c proto.Configure) error {
	if len(c.Links) == 0 {
		return nil
	}
	names := make([]string, len(c.Links))
	for i := range names {
		names[i] = fmt.Sprintf("eth%d", i) // the kernel's command line forbids to rename them
	}
	files := map[string]string{
		managerFile:  managerConf(names),
		networkdFile: networkdConf(c.Links[0], c.Nameservers, c.Search),
	}
	var all []error
	for name, text := range files {
		all = append(all, r.write(name, []byte(text), 0o644))
	}
	return errors.Join(append(all, r.tellIfupdown(names))...)
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

// managerConf names devices by their names: those stay, where a copy of a machine that runs has
// another hardware address.
func managerConf(names []string) string {
	var devices []string
	for _, n := range names {
		devices = append(devices, "interface-name:"+n)
	}
	return "[main]\ndns=none\n\n[keyfile]\nunmanaged-devices=" + strings.Join(devices, ";") + "\n"
}

// tellIfupdown tells ifupdown, where an image has it, that the interfaces are up, so that it
// does not bring them up at boot or when udev sees them. When its service is restarted it would
// take down first what is up.
func (r rootfs) tellIfupdown(names []string) error {
	if _, err := r.read("etc/network/interfaces"); err != nil {
		return nil // nothing would read it
	}
	old, err := r.read(ifstateFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := string(old)
	var all []error
	for _, name := range names {
		line := name + "=" + name + "\n"
		if !strings.Contains("\n"+text, "\n"+line) {
			text += line
		}
		all = append(all, r.write(ifstateFile+"."+name, []byte(line), 0o644)) // what newer ones read
	}
	service := "[Service]\nEnvironment=\"EXCLUDE_INTERFACES=" + strings.Join(names, " ") + "\"\n"
	return errors.Join(append(all, r.write(ifstateFile, []byte(text), 0o644), r.write(ifupdownFile, []byte(service), 0o644))...)
}

// ReloadNetwork has programs that run in the image read anew what writeNetFiles wrote for
// them, and tells whether there are any. Before the image's init has started there are none.
// systemd-resolved, which answers nobody while it starts, is left alone unless the resolver has
// changed.
func (l *Linux) ReloadNetwork(init string, resolver bool) (found bool) {
	if !isSystemd(init) {
		return false
	}
	units := []string{"systemd-networkd.service"}
	if resolver {
		units = append(units, "systemd-resolved.service")
	}
	for _, unit := range units {
		// systemd leaves this link for as long as a unit runs. To ask it by a program takes longer.
		if _, err := os.Lstat("/run/systemd/units/invocation:" + unit); err != nil {
			continue
		}
		path, err := lookPath("systemctl", rootPath, "/")
		if err != nil {
			return found
		}
		found = true
		cmd := exec.Command(path, "try-restart", unit) // does nothing to what does not run
		if err := l.Exposed(cmd.Start); err == nil {
			_ = cmd.Wait() // what it can't restart goes on with what it knew
		}
	}
	return found
}
