package vm

import (
	"context"
	"errors"
	"net/netip"
	"os"

	"banger/internal/errs"
	"banger/internal/guest/proto"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/jail"
	"banger/internal/network"
	"banger/internal/op"
)

// Network is the bridge that VMs can be on.
type Network interface {
	// Check tells whether VMs can be bridged here. errs.Unavailable or errs.Conflict if not.
	Check() error
	// ChooseSubnet picks a subnet that overlaps nothing of the host's.
	ChooseSubnet() (netip.Prefix, error)
	// CheckSubnet refuses one that does. errs.Conflict.
	CheckSubnet(subnet netip.Prefix) error
	// Restore has exactly these ports be there, whatever was before.
	Restore(ctx context.Context, ports []network.Port) error
	// Attach makes a VM's port and opens its forwards. The TAP is for the VMM to inherit;
	// the caller does not close it. It is nil where the VMM opens it by its name.
	Attach(ctx context.Context, p network.Port) (*os.File, error)
	// Forward has exactly these forwards be open for an attached VM.
	Forward(ctx context.Context, vm string, want []network.Forward) error
	// Detach takes a VM's port away, whose machine has ended. Finding none is success.
	Detach(ctx context.Context, vm string) error
	// Nameservers are those that guests of a subnet are to ask.
	Nameservers(subnet netip.Prefix) []netip.Addr
	// Objects lists what there is on the host for ports, and Tidy removes of it what no
	// port accounts for.
	Objects() ([]host.Object, error)
	Tidy(ctx context.Context) error
	Status() network.Status
}

// ErrAddressTaken is returned by a store where another VM has the address.
var ErrAddressTaken = errs.New(errs.Conflict, "another VM has that address")

// The addresses that QEMU's user network gives its one guest.
const (
	UserNetAddress = "10.0.2.15"
	userNetGateway = "10.0.2.2"
	userNetDNS     = "10.0.2.3"
)

// stableNames keeps udev from renaming the interface that the agent has set up.
const stableNames = "net.ifnames=0"

// fillNet checks what a request asks of the network and fills in how it is to be had.
func (m *Manager) fillNet(req Request, s *Spec) error {
	switch req.Net {
	case "", "auto":
		s.Net = NetBridge
		switch err := m.Network.Check(); {
		case errs.KindOf(err) == errs.Conflict: // the config file asks for what is another's
			return err
		case err != nil:
			s.Net = NetUser
		}
	case "bridge":
		if err := m.Network.Check(); err != nil {
			return err
		}
		s.Net = NetBridge
	case "user", "none":
		s.Net = Net(req.Net)
	default:
		return errs.New(errs.Invalid, "there is no network mode %q", req.Net).Try("use auto, bridge, user or none")
	}
	s.Isolated, s.HostAccess = req.Isolated, req.HostAccess
	if (s.Isolated || s.HostAccess) && s.Net != NetBridge {
		return errs.New(errs.Invalid, "a VM with --net %s can be neither isolated from others nor given host access: that is the bridge's", s.Net).
			Try("use --net bridge")
	}
	forwards, err := parseForwards(req.Forwards)
	if err != nil {
		return err
	}
	if len(forwards) > 0 && s.Net == NetNone {
		return noForwards()
	}
	s.Forwards, err = addForwards(nil, forwards)
	return err
}

func noForwards() error {
	return errs.New(errs.Invalid, "a VM without a network has no ports to forward").
		Try("use --net auto, or reach a port over the control channel: banger port --forward HOST:GUEST VM")
}

// freeAddress picks an address for a VM: of the subnet that others are in, else of the one
// that was configured or is free. m.addresses is held.
func (m *Manager) freeAddress(ctx context.Context, id string) (netip.Prefix, error) {
	vms, err := m.Store.List(ctx)
	if err != nil {
		return netip.Prefix{}, err
	}
	subnet, taken := addressesOf(vms)
	if !subnet.IsValid() {
		if subnet, err = m.firstSubnet(); err != nil {
			return netip.Prefix{}, err
		}
	}
	return network.Allocate(subnet, id, func(a netip.Addr) bool { return taken[a] })
}

func (m *Manager) firstSubnet() (netip.Prefix, error) {
	if m.Subnet.IsValid() {
		return m.Subnet, m.Network.CheckSubnet(m.Subnet)
	}
	return m.Network.ChooseSubnet()
}

// addressesOf returns the subnet that VMs are in, if any is, and the addresses they have.
func addressesOf(vms []VM) (subnet netip.Prefix, taken map[netip.Addr]bool) {
	taken = map[netip.Addr]bool{}
	for _, v := range vms {
		if v.Address.IsValid() {
			subnet = v.Address.Masked()
			taken[v.Address.Addr()] = true
		}
	}
	return subnet, taken
}

func (m *Manager) portOf(v VM) network.Port {
	owner := os.Geteuid()
	if m.jailed(v) {
		owner = jail.ID(v.ID)
	}
	return network.Port{VM: v.ID, MAC: v.MAC, Address: v.Address, Isolated: v.Spec.Isolated, HostAccess: v.Spec.HostAccess, Forwards: v.Spec.Forwards,
		ByName: v.Spec.Backend == hypervisor.Firecracker, Owner: owner}
}

// connect makes what v's machine is to have of the network. removeMachine undoes it.
func (m *Manager) connect(ctx context.Context, o *op.Operation, v *VM) ([]hypervisor.NIC, error) {
	switch v.Spec.Net {
	case NetUser:
		return []hypervisor.NIC{{Mode: hypervisor.NICUser, MAC: v.MAC}}, nil
	case NetNone:
		return nil, nil
	}
	if err := m.Network.Check(); err != nil {
		return nil, err
	}
	if err := m.ensureAddress(ctx, v); err != nil {
		return nil, err
	}
	tap, err := m.Network.Attach(ctx, m.portOf(*v))
	if err != nil {
		return nil, err
	}
	if problem := m.Network.Status().Overlap; problem != "" {
		o.Warn(problem)
	}
	return []hypervisor.NIC{{Mode: hypervisor.NICTAP, MAC: v.MAC, TAP: tap, TAPName: network.TAP(v.ID)}}, nil
}

// ensureAddress gives a VM an address that has lost its own.
func (m *Manager) ensureAddress(ctx context.Context, v *VM) error {
	if v.Address.IsValid() {
		return nil
	}
	m.addresses.Lock()
	defer m.addresses.Unlock()
	address, err := m.freeAddress(ctx, v.ID)
	if err != nil {
		return err
	}
	*v, err = m.update(ctx, v.ID, "addressed", func(x *VM) error {
		x.Address = address
		return nil
	})
	return err
}

// disconnect takes away what connect made. The machine has ended.
func (m *Manager) disconnect(ctx context.Context, v VM) error {
	if v.Spec.Net != NetBridge {
		return nil
	}
	return m.Network.Detach(ctx, v.ID)
}

// guestNet is the network as v's guest is to set it up.
func (m *Manager) guestNet(v VM) (links []proto.Link, nameservers []string) {
	switch v.Spec.Net {
	case NetUser:
		return []proto.Link{{MAC: v.MAC, Addresses: []string{UserNetAddress + "/24"}, Gateway: userNetGateway}}, []string{userNetDNS}
	case NetBridge:
		subnet := v.Address.Masked()
		for _, a := range m.Network.Nameservers(subnet) {
			nameservers = append(nameservers, a.String())
		}
		return []proto.Link{{MAC: v.MAC, Addresses: []string{v.Address.String()}, Gateway: network.Gateway(subnet).String()}}, nameservers
	}
	return nil, nil
}

// restoreNetwork has the ports of all VMs that run be there at once, before any of them is
// settled: those of VMs that turn out to have ended go one by one.
func (m *Manager) restoreNetwork(ctx context.Context, vms []VM) error {
	var ports []network.Port
	for _, v := range vms {
		if v.Spec.Net == NetBridge && v.State.HasMachine() && v.Address.IsValid() && v.Machine != nil && v.Machine.Process.BootID == m.Host.BootID {
			ports = append(ports, m.portOf(v))
		}
	}
	return m.Network.Restore(ctx, ports)
}

// Move gives all VMs on the bridge addresses of another subnet, those that run by their
// agents: any that is free if the given one is not valid. It returns the new one.
func (m *Manager) Move(ctx context.Context, o *op.Operation, subnet netip.Prefix) (netip.Prefix, error) {
	m.addresses.Lock()
	defer m.addresses.Unlock()
	vms, unlock, err := m.lockBridged(ctx)
	if err != nil {
		return subnet, err
	}
	defer unlock()
	if len(vms) == 0 {
		return subnet, errs.New(errs.Conflict, "no VM is on the bridge, so there is nothing to move").
			Try("a subnet that overlaps nothing is chosen for the first; the config file's `subnet` sets one")
	}
	if subnet.IsValid() {
		err = m.Network.CheckSubnet(subnet)
	} else {
		subnet, err = m.Network.ChooseSubnet()
	}
	if err != nil {
		return subnet, err
	}
	to, taken := map[string]netip.Prefix{}, map[netip.Addr]bool{}
	for i, v := range vms {
		if to[v.ID], err = network.Allocate(subnet, v.ID, func(a netip.Addr) bool { return taken[a] }); err != nil {
			return subnet, err
		}
		taken[to[v.ID].Addr()] = true
		vms[i].Address = to[v.ID]
	}
	// From here on there is no way back: what a crash leaves undone recovery does.
	ctx = context.WithoutCancel(ctx)
	if err := m.Store.Readdress(ctx, to); err != nil {
		return subnet, err
	}
	if err := m.restoreNetwork(ctx, vms); err != nil {
		return subnet, err
	}
	for i, v := range vms {
		o.Stage("moving VMs", int64(i), int64(len(vms)))
		err = errors.Join(err, m.finishMove(ctx, v))
	}
	return subnet, err
}

// lockBridged takes the locks of all VMs on the bridge and returns them. One that is
// paused could not hear of its new address. errs.Conflict.
func (m *Manager) lockBridged(ctx context.Context) (vms []VM, unlock func(), err error) {
	var unlocks []func()
	unlock = func() {
		for _, u := range unlocks {
			u()
		}
	}
	all, err := m.Store.List(ctx)
	for _, v := range all {
		if v.Spec.Net != NetBridge {
			continue
		}
		v, u, lockErr := m.lock(ctx, v.ID, "moved to another subnet")
		if errs.KindOf(lockErr) == errs.NotFound && lockErr != nil {
			continue
		}
		if err = lockErr; err != nil {
			break
		}
		unlocks = append(unlocks, u)
		if v.State == Paused {
			err = errs.New(errs.Conflict, "VM %s is paused and can't be given another address", v.Name).Try("banger resume %s", v.Name)
			break
		}
		vms = append(vms, v)
	}
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return vms, unlock, nil
}

// finishMove has a running guest use the address that its VM has, if it may not know it
// yet: then the VM's network is pending. The VM's lock is held.
func (m *Manager) finishMove(ctx context.Context, v VM) error {
	if v.Spec.Net != NetBridge {
		return nil
	}
	if v.State != Running {
		return m.Dirs.Save(v)
	}
	resources, err := m.Store.Resources(ctx, v.ID)
	if err != nil {
		return err
	}
	if live, known := (row{v, resources}).has(KindNetwork); live || !known {
		return nil
	}
	r, err := m.machineOf(v)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, reconnectLimit)
	defer cancel()
	g, err := r.channel(limited)
	if err == nil {
		err = m.configure(limited, v, g, nil)
	}
	if err != nil {
		return errs.New(errs.Unavailable, "the guest of VM %s did not take its new address %s", v.Name, v.Address.Addr()).Because(err).
			Try("banger restart %s", v.Name)
	}
	_, err = m.update(ctx, v.ID, "moved", func(*VM) error { return nil }, Change{KindNetwork, Live})
	return err
}

// Reach has a running guest connect to an address. A refusal is an answer, and no error.
func (m *Manager) Reach(ctx context.Context, ref, address string) error {
	g, err := m.Guest(ctx, ref)
	if err != nil {
		return err
	}
	return g.Call(ctx, proto.MethodReach, proto.Reach{Address: address}, nil)
}
