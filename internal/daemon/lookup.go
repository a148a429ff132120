package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"banger/api"
	"banger/internal/dns"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/vm"
)

// systemHosts is the hosts file that this host's programs read.
const systemHosts = "/etc/hosts"

// checkName resolves a VM's name as programs of this host do.
func (d *Daemon) checkName(ctx context.Context, v vm.VM) api.Check {
	const check = "name of a VM"
	ctx, cancel := context.WithTimeout(ctx, pathLimit)
	defer cancel()
	name := d.names.Name(v.ID)
	if name == "" {
		return finding(check, failed, fmt.Sprintf("VM %s runs and has no name", v.Name), nil)
	}
	if err := d.names.try(ctx, name, v.Address.Addr()); err != nil {
		return finding(check, warning, "", err)
	}
	if d.names.choice.Name() == "none" {
		return finding(check, ok, fmt.Sprintf("banger's DNS knows that %s is %s; this host is told nothing", name, v.Address.Addr()), nil)
	}
	return finding(check, ok, fmt.Sprintf("%s is %s for this host's programs", name, v.Address.Addr()), nil)
}

// try has a name resolved in every way that it should be known. errs.Unavailable says in
// which it is not.
func (n *names) try(ctx context.Context, name string, want netip.Addr) error {
	n.mu.Lock()
	listener := n.host.listener
	n.mu.Unlock()
	if listener != nil { // where there is none the check of names tells
		got, err := dns.Ask(ctx, listener.Addr(), name)
		if err == nil && got != want {
			err = fmt.Errorf("it says %s", got)
		}
		if err != nil {
			return errs.New(errs.Unavailable, "banger's DNS does not say that %s is %s", name, want).Because(err)
		}
	}
	switch n.choice.Name() {
	case "none":
		return nil
	case n.hosts.Name():
		if err := n.inHosts(name, want); err != nil || n.hosts.File != systemHosts {
			return err
		}
	}
	return tryHost(ctx, name, want)
}

// inHosts looks for a name in the hosts file that we edit.
func (n *names) inHosts(name string, want netip.Addr) error {
	lines, err := n.hosts.Lines()
	if err != nil {
		return err
	}
	for _, r := range lines {
		if r.Name+".vm" == name && r.Addr == want {
			return nil
		}
	}
	return errs.New(errs.Unavailable, "%s is not in %s", name, n.hosts.File).Try("banger dns status tells why")
}

// tryHost resolves a name by the C library, through all that this host's nsswitch.conf names.
func tryHost(ctx context.Context, name string, want netip.Addr) error {
	out, err := host.Output(ctx, host.Command{Path: "getent", Args: []string{"ahostsv4", name}})
	if f := strings.Fields(string(out)); err == nil && (len(f) == 0 || f[0] != want.String()) {
		err = fmt.Errorf("it finds %q", strings.Join(f, " "))
	}
	if err != nil {
		return errs.New(errs.Unavailable, "this host does not resolve %s to %s, though it was told", name, want).Because(err).
			Try("see that the line hosts: of /etc/nsswitch.conf has what banger dns status names as publisher, or set dns_publish in the config file")
	}
	return nil
}
