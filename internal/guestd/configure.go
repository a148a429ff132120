package guestd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/internal/errs"
	"banger/internal/guest/proto"
)

// linkTimeout bounds the wait for a network interface that the host promised.
const linkTimeout = 10 * time.Second

// clockSlack is how far the clock may be off before it is set.
const clockSlack = time.Second

// configure gives the machine its identity. What the image's files won't take (a
// read-only root, say) is logged; the machine works without.
func (a *Agent) configure(c proto.Configure) error {
	a.conf.Lock()
	defer a.conf.Unlock()
	if err := checkConfigure(c); err != nil {
		return err
	}
	hostKey, authorized := c.SSHHostKey, c.AuthorizedKeys
	ssh := sync.OnceValues(func() (*sshIdentity, error) { return newSSHIdentity(hostKey, authorized) })
	if c.Clone == nil { // whose user waits, and may never want it
		if _, err := ssh(); err != nil {
			return errs.New(errs.Invalid, "the SSH keys for the guest").Because(err)
		}
	}
	if err := a.configureKernel(c); err != nil {
		return err
	}
	linked := make(chan error, 1)
	go func() { linked <- a.setLinks(c.Links) }()
	if err := a.writeFiles(c); err != nil {
		a.Log.Printf("configure: %v", err)
	}
	var grown error
	if c.GrowRoot {
		_, grown = a.System.GrowRoot(a.Root)
	}
	if err := <-linked; err != nil {
		return fmt.Errorf("set up the guest's network: %w", err)
	}
	if grown != nil {
		return errs.New(errs.Internal, "grow the guest's root filesystem").Because(grown)
	}
	a.mu.Lock()
	was := a.id
	a.mu.Unlock()
	if c.Clone != nil {
		a.becomeAnother(*c.Clone)
	}
	if links, resolver := sameLinks(was.net, c), sameResolver(was.net, c); was.configured && !(links && resolver) {
		if err := a.reloadNetwork(c.Links, !resolver); err != nil {
			return fmt.Errorf("set up the guest's network again: %w", err)
		}
	}
	if c.Clone != nil {
		a.runHooks(c)
	}
	a.mu.Lock()
	// Its entropy is not kept: a machine that is saved would have it for all who go on from it.
	a.id = identity{vmID: c.VMID, configured: true, ssh: ssh, env: c.Env,
		net: proto.Configure{Links: c.Links, Nameservers: c.Nameservers, Search: c.Search}}
	a.mu.Unlock()
	if !was.configured && a.Configured != nil {
		a.Configured()
	}
	return nil
}

// sameLinks tells whether two configures say the same of the network's interfaces.
func sameLinks(a, b proto.Configure) bool {
	return slices.EqualFunc(a.Links, b.Links, func(x, y proto.Link) bool {
		return x.MAC == y.MAC && slices.Equal(x.Addresses, y.Addresses) && x.Gateway == y.Gateway && x.MTU == y.MTU
	})
}

// sameResolver tells whether they say the same of name servers.
func sameResolver(a, b proto.Configure) bool {
	return slices.Equal(a.Nameservers, b.Nameservers) && slices.Equal(a.Search, b.Search)
}

// reloadLimit is how long configure waits for the image's own network programs.
const reloadLimit = 10 * time.Second

// checkConfigure refuses what would break the files it is written to.
func checkConfigure(c proto.Configure) error {
	for _, word := range append(append([]string{c.Hostname}, c.Nameservers...), c.Search...) {
		if strings.ContainsAny(word, " \t\r\n\x00") || len(word) > 253 {
			return errs.New(errs.Invalid, "%q can't be a host's name or address", word)
		}
	}
	if c.MachineID != "" && (len(c.MachineID) != 32 || strings.Trim(c.MachineID, "0123456789abcdef") != "") {
		return errs.New(errs.Invalid, "machine id %q is not 32 hex digits", c.MachineID)
	}
	return nil
}

// configureKernel sets what lives in the kernel's memory.
func (a *Agent) configureKernel(c proto.Configure) error {
	if len(c.Entropy) > 0 {
		if err := a.System.AddEntropy(c.Entropy); err != nil {
			a.Log.Printf("configure: add entropy: %v", err)
		}
	}
	if c.UnixNanos != 0 {
		if err := a.setClock(time.Unix(0, c.UnixNanos), c.Clone != nil); err != nil {
			return fmt.Errorf("set the guest's clock: %w", err)
		}
	}
	if c.Hostname != "" {
		if err := a.System.SetHostname(c.Hostname); err != nil {
			return fmt.Errorf("set the guest's host name: %w", err)
		}
	}
	return nil
}

func (a *Agent) setLinks(links []proto.Link) error {
	ctx, cancel := context.WithTimeout(context.Background(), linkTimeout)
	defer cancel()
	return a.System.SetLinks(ctx, links)
}

// reloadNetwork has the image's own network programs know what has changed, and sets links
// again, which they may have changed back or taken down meanwhile. A command that runs after
// configure finds a network that stays, but for programs that take very long.
func (a *Agent) reloadNetwork(links []proto.Link, resolver bool) error {
	reloaded := make(chan bool, 1)
	go func() { reloaded <- a.System.ReloadNetwork(a.Init, resolver) }()
	select {
	case found := <-reloaded:
		if found {
			return a.setLinks(links)
		}
	case <-time.After(reloadLimit):
	}
	return nil
}

// setClock never turns a clock back that programs have seen. A clone's has stood still since
// the machine that it goes on from was saved.
func (a *Agent) setClock(t time.Time, clone bool) error {
	a.mu.Lock()
	first := !a.id.configured
	a.mu.Unlock()
	ahead := t.Sub(a.System.Now())
	if clone && ahead > 0 || ahead > clockSlack || (first && ahead < -clockSlack) {
		return a.System.SetTime(t)
	}
	return nil
}

// writeFiles writes what programs read, where it differs. It tries them all.
func (a *Agent) writeFiles(c proto.Configure) error {
	r := rootfs(a.Root)
	var all []error
	if c.Hostname != "" {
		all = append(all,
			r.write("etc/hostname", []byte(c.Hostname+"\n"), 0o644),
			r.edit("etc/hosts", func(old []byte) []byte { return hostsWith(old, c.Hostname) }))
	}
	if c.MachineID != "" {
		all = append(all, r.write("etc/machine-id", []byte(c.MachineID+"\n"), 0o444))
	}
	if len(c.Nameservers) > 0 {
		all = append(all, r.setResolver(c.Nameservers, c.Search))
	}
	return errors.Join(append(all, r.writeNetFiles(c))...)
}

// ownName is the address by which a Debian host knows itself.
const ownName = "127.0.1.1"

// hostsWith gives a hosts file in which ownName stands for name.
func hostsWith(old []byte, name string) []byte {
	line := ownName + "\t" + name
	if len(old) == 0 {
		return []byte("127.0.0.1\tlocalhost\n::1\tlocalhost\n" + line + "\n")
	}
	lines := strings.Split(strings.TrimSuffix(string(old), "\n"), "\n")
	found := false
	kept := lines[:0]
	for _, l := range lines {
		if f := strings.Fields(l); len(f) > 0 && f[0] == ownName {
			if found {
				continue
			}
			found = true
			if len(f) == 2 && f[1] == name {
				line = l // as it was: nothing to write
			}
			l = line
		}
		kept = append(kept, l)
	}
	if !found {
		kept = append(kept, line)
	}
	return []byte(strings.Join(kept, "\n") + "\n")
}

// Where systemd-resolved keeps resolv.conf files of its making, and one place that it reads
// its configuration from when it starts.
const (
	resolvedDir  = "run/systemd/resolve"
	resolvedConf = "run/systemd/resolved.conf.d/banger.conf"
)

// setResolver tells the image's resolver of the nameservers. systemd-resolved writes anew
// the file that /etc/resolv.conf then points to, so it is told in its own configuration.
func (r rootfs) setResolver(nameservers, search []string) error {
	path, err := r.resolve("etc/resolv.conf")
	if err != nil {
		return err
	}
	if strings.HasPrefix(path, filepath.Join(string(r), resolvedDir)+"/") {
		return r.write(resolvedConf, []byte("[Resolve]\nDNS="+strings.Join(nameservers, " ")+"\nDomains="+strings.Join(search, " ")+"\n"), 0o644)
	}
	return r.write("etc/resolv.conf", resolvConf(nameservers, search), 0o644)
}

func resolvConf(nameservers, search []string) []byte {
	var b strings.Builder
	for _, n := range nameservers {
		b.WriteString("nameserver " + n + "\n")
	}
	if len(search) > 0 {
		b.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	return []byte(b.String())
}

// edit rewrites a file through change, which gets nil for one that is not there.
func (r rootfs) edit(name string, change func(old []byte) []byte) error {
	old, err := r.read(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return r.write(name, change(old), os.FileMode(0o644))
}
