package vm_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/network"
)

// fakeNet is a bridge in memory. It refuses what the real one would.
type fakeNet struct {
	w       *world
	ports   map[string]network.Port
	choice  string // subnet that is chosen; empty: there is no bridge to be had
	foreign bool   // the bridge's name is that of another's interface
	overlap string
}

func (n *fakeNet) Check() error {
	if err := n.w.failing("network"); err != nil {
		return err
	}
	if n.foreign {
		return errs.New(errs.Conflict, "the interface is another's")
	}
	if n.choice == "" {
		return errs.New(errs.Unavailable, "there is no bridge here")
	}
	return nil
}

func (n *fakeNet) ChooseSubnet() (netip.Prefix, error) { return netip.ParsePrefix(n.choice) }

func (n *fakeNet) CheckSubnet(s netip.Prefix) error {
	if s.Overlaps(netip.MustParsePrefix("10.99.0.0/16")) {
		return errs.New(errs.Conflict, "%s overlaps a route", s)
	}
	return nil
}

func (n *fakeNet) Restore(_ context.Context, ports []network.Port) error {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.ports = map[string]network.Port{}
	for _, p := range ports {
		n.ports[p.VM] = p
	}
	return nil
}

func (n *fakeNet) Attach(_ context.Context, p network.Port) (*os.File, error) {
	n.w.mu.Lock()
	for _, q := range n.ports {
		if q.VM != p.VM && (q.Address.Addr() == p.Address.Addr() || q.MAC == p.MAC || q.Address.Masked() != p.Address.Masked()) {
			n.w.t.Errorf("port %+v beside %+v", p, q)
		}
	}
	n.ports[p.VM] = p
	n.w.mu.Unlock()
	return nil, n.w.failing("attach")
}

func (n *fakeNet) Forward(_ context.Context, vm string, want []network.Forward) error {
	if err := n.w.failing("forward"); err != nil {
		return err
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	p, ok := n.ports[vm]
	if !ok {
		return errs.New(errs.Conflict, "VM %s is not on the bridge", vm)
	}
	p.Forwards = want
	n.ports[vm] = p
	return nil
}

func (n *fakeNet) Detach(_ context.Context, vm string) error {
	if err := n.w.failing("detach"); err != nil {
		return err
	}
	n.w.set(func() { delete(n.ports, vm) })
	return nil
}

func (n *fakeNet) Nameservers(subnet netip.Prefix) []netip.Addr {
	return []netip.Addr{network.Gateway(subnet)}
}

func (n *fakeNet) Objects() (all []host.Object, err error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for id := range n.ports {
		all = append(all, host.Object{Kind: "link", Name: network.TAP(id), Path: id})
	}
	if len(all) > 0 {
		all = append(all, host.Object{Kind: "link", Name: "banger0"}, host.Object{Kind: "address", Name: "of banger0"}, host.Object{Kind: "route", Name: "by banger0"}, host.Object{Kind: "nft", Name: "table"}, host.Object{Kind: "sysctl", Name: "forwarding"})
	}
	return all, nil
}

func (n *fakeNet) Tidy(context.Context) error { return nil }

func (n *fakeNet) Status() network.Status {
	return network.Status{Bridge: "banger0", Overlap: n.overlap}
}

// text lists the ports, in order.
func (n *fakeNet) text() string {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	var lines []string
	for _, p := range n.ports {
		lines = append(lines, fmt.Sprintf("%s %s %v", p.VM, p.Address, p.Forwards))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Forward is what QEMU's own network stack forwards.
func (m *machine) Forward(_ context.Context, f hypervisor.Forward, open bool) error {
	if err := m.w.failing("forward"); err != nil {
		return err
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.forwards == nil {
		m.forwards = map[hypervisor.Forward]bool{}
	}
	if m.forwards[f] == open {
		m.w.t.Errorf("forward %v is %v already", f, open)
	}
	if m.forwards[f] = open; !open {
		delete(m.forwards, f)
	}
	return nil
}
