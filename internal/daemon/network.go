package daemon

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"banger/api"
	"banger/internal/config"
	"banger/internal/network"
	"banger/internal/vm"
)

// openNetwork opens the bridge of this daemon and returns the subnet that was configured.
func (d *Daemon) openNetwork(cfg config.Config, boot string) (subnet netip.Prefix, err error) {
	if cfg.Bridge != "" {
		if err := network.CheckBridgeName(cfg.Bridge); err != nil {
			return subnet, err
		}
	}
	if cfg.Subnet != "" {
		if subnet, err = network.ParseSubnet(cfg.Subnet); err != nil {
			return subnet, err
		}
	}
	d.network = network.Open(network.Options{
		State: cfg.StateDir, BootID: boot, Name: cfg.Bridge, Log: d.opts.Log,
		Noticed: func(problem string) {
			if err := d.store.Note(context.Background(), "network", problem); err != nil {
				d.opts.Log.Error("record an event", "err", err)
			}
		},
	})
	return subnet, nil
}

// watchNetwork has the bridge mend itself. A host that can't have one has nothing to watch.
func (d *Daemon) watchNetwork() {
	if d.network.Check() != nil {
		return
	}
	if err := d.network.Watch(); err != nil {
		d.opts.Log.Error("watch the network", "err", err)
	}
}

// bridgeReach is what naming has to know of the bridge.
type bridgeReach struct{ bridge *network.Bridge }

// Address implements reach: the host reaches VMs on the bridge.
func (bridgeReach) Address(v vm.VM) (netip.Addr, bool) {
	return v.Address.Addr(), v.Spec.Net == vm.NetBridge && v.Address.IsValid()
}

// Bridge implements reach.
func (r bridgeReach) Bridge() (link string, addr netip.Prefix, ok bool) {
	s := r.bridge.Status()
	if !s.Subnet.IsValid() {
		return "", netip.Prefix{}, false
	}
	return s.Bridge, netip.PrefixFrom(network.Gateway(s.Subnet), s.Subnet.Bits()), true
}

// checkNetwork examines what VMs need of the host's network, as far as possible by using it.
func (d *Daemon) checkNetwork(ctx context.Context) []api.Check {
	const name = "bridge network"
	if err := d.network.Check(); err != nil {
		c := finding(name, warning, "", err)
		c.Detail += ". VMs have QEMU's user network instead"
		return []api.Check{c}
	}
	s := d.network.Status()
	checks := []api.Check{finding(name, ok, "VMs can be on the bridge "+s.Bridge, nil)}
	if len(s.Ports) > 0 {
		checks[0].Detail = fmt.Sprintf("%d VMs are on the bridge %s, %s", len(s.Ports), s.Bridge, s.Subnet)
	}
	add := func(detail, hint string) {
		checks = append(checks, api.Check{Name: name, Status: warning, Detail: detail, Hint: hint})
	}
	if s.Overlap != "" {
		add(s.Overlap, "banger network move")
	}
	if s.Problem != "" {
		add("VMs may not reach beyond this host: "+s.Problem, "")
	}
	for _, o := range network.Obstacles(s) {
		add(o.What, o.Hint)
	}
	return append(checks, d.checkPaths(ctx)...)
}

// pathLimit bounds how long one VM may take to be reached, or to reach out.
const pathLimit = 3 * time.Second

// checkPaths resolves the name of the first running VM on the bridge, reaches it from the
// host, and out from it.
func (d *Daemon) checkPaths(ctx context.Context) []api.Check {
	vms, err := d.vms.List(ctx)
	if err != nil {
		return []api.Check{finding("paths", failed, "", err)}
	}
	for _, v := range vms {
		if v.Spec.Net != vm.NetBridge || v.State != vm.Running {
			continue
		}
		return []api.Check{d.checkName(ctx, v), d.checkPathIn(ctx, v), d.checkPathOut(ctx, v)}
	}
	return nil
}

func (d *Daemon) checkPathIn(ctx context.Context, v vm.VM) api.Check {
	ctx, cancel := context.WithTimeout(ctx, pathLimit)
	defer cancel()
	if err := network.Reach(ctx, netip.AddrPortFrom(v.Address.Addr(), 22)); err != nil {
		return finding("path to a VM", failed, fmt.Sprintf("VM %s at %s does not answer this host: %v", v.Name, v.Address.Addr(), err), nil)
	}
	return finding("path to a VM", ok, fmt.Sprintf("VM %s answers at %s", v.Name, v.Address.Addr()), nil)
}

// checkPathOut has a VM reach the host's own gateway, by name of which nothing needs to
// listen: a refusal comes from there too.
func (d *Daemon) checkPathOut(ctx context.Context, v vm.VM) api.Check {
	const name = "path out of a VM"
	gateway, err := network.HostGateway()
	if err != nil {
		return finding(name, warning, "", err)
	}
	ctx, cancel := context.WithTimeout(ctx, pathLimit)
	defer cancel()
	target := net.JoinHostPort(gateway.String(), "53")
	if err := d.vms.Reach(ctx, v.ID, target); err != nil {
		return finding(name, warning, fmt.Sprintf("VM %s gets no answer from %s, this host's gateway: %v", v.Name, gateway, err), nil)
	}
	return finding(name, ok, fmt.Sprintf("VM %s gets an answer from %s, this host's gateway", v.Name, gateway), nil)
}

// describeNetwork is `network show`.
func (d *Daemon) describeNetwork(ctx context.Context) (api.NetworkInfo, error) {
	s := d.network.Status()
	out := api.NetworkInfo{Available: true, Bridge: s.Bridge, Rules: append([]string{}, s.Rules...), Leases: []api.Lease{}, Problems: []string{}}
	if err := d.network.Check(); err != nil {
		out.Available = false
		out.Problems = append(out.Problems, err.Error())
	}
	for _, p := range []string{s.Overlap, s.Problem} {
		if p != "" {
			out.Problems = append(out.Problems, p)
		}
	}
	for _, o := range network.Obstacles(s) {
		out.Problems = append(out.Problems, o.What)
	}
	vms, err := d.vms.List(ctx)
	if err != nil {
		return out, err
	}
	for _, v := range vms {
		if v.Spec.Net == vm.NetNone {
			continue
		}
		l := api.Lease{VM: v.ID, Name: v.Name, State: api.State(v.State), Mode: string(v.Spec.Net), MAC: v.MAC, Isolated: v.Spec.Isolated, HostAccess: v.Spec.HostAccess}
		if v.Address.IsValid() {
			l.IP = v.Address.Addr().String()
			out.Subnet, out.Gateway = v.Address.Masked().String(), network.Gateway(v.Address).String()
		}
		for _, f := range v.Spec.Forwards {
			l.Forwards = append(l.Forwards, api.Forward{Protocol: f.Protocol, HostIP: f.Host.Addr().String(), HostPort: int(f.Host.Port()), GuestPort: int(f.Guest)})
		}
		out.Leases = append(out.Leases, l)
	}
	return out, nil
}
