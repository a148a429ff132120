package config

import (
	"net/netip"
	"path/filepath"
	"slices"

	"banger/internal/errs"
)

// DNS is how the names of VMs are made known.
type DNS struct {
	Publish   string         // to the host's programs: auto, resolved, hosts, exec or none
	Exec      []string       // the command of exec, with its arguments
	Listen    netip.AddrPort // where the host is answered; invalid: nowhere
	HostsFile string         // that hosts edits
}

// defaultListen is where root's daemon answers the host: an address of the loopback's that
// other name servers leave alone.
var defaultListen = netip.MustParseAddrPort("127.0.0.153:53")

// dnsOf reads the keys about names. BANGER_HOSTS_FILE goes before hosts_file.
func dnsOf(f file, getenv func(string) string, euid int) (DNS, error) {
	d := DNS{Publish: "auto", Exec: f.DNSExec, HostsFile: "/etc/hosts"}
	if euid == 0 {
		d.Listen = defaultListen
	}
	if f.DNSPublish != "" {
		d.Publish = f.DNSPublish
	}
	switch ways := []string{"auto", "resolved", "hosts", "exec", "none"}; {
	case !slices.Contains(ways, d.Publish):
		return DNS{}, errs.New(errs.Invalid, "dns_publish = %q is no way to publish names", d.Publish).Try("choose auto, resolved, hosts, exec or none")
	case d.Publish == "exec" && len(d.Exec) == 0:
		return DNS{}, errs.New(errs.Invalid, "dns_publish = \"exec\" needs a command").
			Try(`write dns_exec = ["/path/of/tool"]; it is run with set NAME IP and with del NAME IP`)
	case len(d.Exec) > 0 && !filepath.IsAbs(d.Exec[0]):
		return DNS{}, errs.New(errs.Invalid, "dns_exec: %q is not an absolute path", d.Exec[0]).Try("name the program by its whole path, and each argument by itself")
	}
	for _, path := range []string{f.HostsFile, getenv("BANGER_HOSTS_FILE")} {
		if path != "" {
			d.HostsFile = path
		}
	}
	if !filepath.IsAbs(d.HostsFile) {
		return DNS{}, errs.New(errs.Invalid, "hosts_file = %q is not an absolute path", d.HostsFile)
	}
	if f.DNSListen == nil {
		return d, nil
	}
	if d.Listen = (netip.AddrPort{}); *f.DNSListen == "" {
		return d, nil
	}
	listen, err := netip.ParseAddrPort(*f.DNSListen)
	if err != nil || !listen.Addr().Is4() || !listen.Addr().IsLoopback() {
		return DNS{}, errs.New(errs.Invalid, "dns_listen = %q is no address of the loopback's with a port", *f.DNSListen).
			Try(`write "127.0.0.153:53", or "" to answer nowhere`)
	}
	d.Listen = listen
	return d, nil
}
