package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"banger/api"
	"banger/internal/config"
	"banger/internal/dns"
	"banger/internal/dns/publish"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/vm"
)

const (
	// publishLimit bounds one publication: a command is run for each name.
	publishLimit = 2 * time.Minute

	// withdrawLimit bounds the end of all publication when the daemon ends.
	withdrawLimit = 15 * time.Second

	// republish is how often what was published is looked after: systemd-resolved forgets it
	// when it restarts, others write the hosts file, a command may work again.
	republish = 10 * time.Second
)

// reach is what naming has to know of networks.
type reach interface {
	// Address is where the host reaches the VM; ok is false if it can't.
	Address(v vm.VM) (addr netip.Addr, ok bool)
	// Bridge is the interface that guests are on and the host's own address there, with the
	// length of the subnet; ok is false if there is none.
	Bridge() (link string, addr netip.Prefix, ok bool)
}

// vmList is what naming needs of the store.
type vmList interface {
	List(ctx context.Context) ([]vm.VM, error)
	Changed() <-chan struct{}
}

// names keeps the records that are served, and what is published of them, as the store has
// the VMs.
type names struct {
	vms       vmList
	reach     reach
	boot      string // id of the host's running boot
	log       *slog.Logger
	server    *dns.Server
	resolvers *dns.HostResolvers
	choice    publish.Choice
	hosts     *publish.Hosts // for the census, whatever is chosen

	cancel context.CancelFunc
	loops  sync.WaitGroup
	wake   chan struct{} // the publishing loop

	publishing sync.Mutex // held while the publisher works

	mu      sync.Mutex
	host    ear
	guest   ear
	state   publish.State
	problem error // of the publisher's last try
}

// ear is an address that is to be answered on.
type ear struct {
	want     netip.AddrPort // invalid: nowhere
	listener *dns.Listener
	problem  error
}

// openNames begins to serve and to publish. What can't be had is told by status.
func openNames(ctx context.Context, c config.Config, vms vmList, r reach, boot string, log *slog.Logger) (*names, error) {
	resolvers, err := dns.WatchHostResolvers(dns.ResolvConf, dns.ResolvedConf, log)
	if err != nil {
		return nil, err
	}
	n := &names{
		vms: vms, reach: r, boot: boot, log: log, resolvers: resolvers, server: dns.NewServer(resolvers),
		hosts: &publish.Hosts{File: c.DNS.HostsFile, Owner: c.StateDir}, wake: make(chan struct{}, 1),
		choice: publish.Choose(ctx, publish.Config{
			Want: c.DNS.Publish, Owner: c.StateDir, Hosts: c.DNS.HostsFile, Command: c.DNS.Exec,
			Journal: filepath.Join(c.StateDir, "dns-exec.json"), Root: os.Geteuid() == 0,
		}),
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	n.cancel = cancel
	n.host.tune(c.DNS.Listen, n.server.ServeHost)
	changed := vms.Changed()
	if err := n.derive(run); err != nil {
		return nil, errors.Join(err, n.close())
	}
	n.loops.Go(func() { n.follow(run, changed) })
	n.loops.Go(func() { n.keepPublished(run) })
	return n, nil
}

// tune listens where it is wanted, if that is not done yet.
func (e *ear) tune(want netip.AddrPort, serve func(netip.AddrPort) (*dns.Listener, error)) {
	if want == e.want && (e.listener != nil || !want.IsValid()) {
		return
	}
	err := e.close()
	if e.want = want; want.IsValid() {
		e.listener, e.problem = serve(want)
	}
	e.problem = errors.Join(e.problem, err)
}

func (e *ear) close() (err error) {
	if e.listener != nil {
		err = e.listener.Close()
	}
	*e = ear{}
	return err
}

// follow derives the records anew whenever the store has changed.
func (n *names) follow(ctx context.Context, changed <-chan struct{}) {
	tick := time.NewTicker(republish) // for an address that could not be listened on
	defer tick.Stop()
	for {
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		changed = n.vms.Changed() // before the look, so that nothing is missed
		if err := n.derive(ctx); err != nil && ctx.Err() == nil {
			n.log.Error("derive names from the VMs", "err", err)
		}
	}
}

// derive brings the server up to date with the store, and has published what has changed.
func (n *names) derive(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	vms, err := n.vms.List(ctx)
	if err != nil {
		return err
	}
	var records []dns.Record
	for _, v := range vms {
		if addr, ok := n.reach.Address(v); ok && n.runs(v) {
			records = append(records, dns.Record{Name: v.Name, Addr: addr, ID: v.ID})
		}
	}
	state := publish.State{Records: records}
	link, addr, bridged := n.reach.Bridge()
	if bridged {
		n.guest.tune(netip.AddrPortFrom(addr.Addr(), 53), n.server.ServeGuests)
		state.Link, state.Domains = link, append([]string{"vm"}, dns.ReverseDomains(addr)...)
	} else {
		n.guest.tune(netip.AddrPort{}, nil)
	}
	if n.guest.listener != nil {
		state.Server = n.guest.listener.Addr()
	}
	if slices.Equal(state.Records, n.state.Records) && slices.Equal(state.Domains, n.state.Domains) &&
		state.Link == n.state.Link && state.Server == n.state.Server {
		return nil
	}
	n.server.Set(addr, records)
	n.state = state
	select {
	case n.wake <- struct{}{}:
	default: // it is to be woken already
	}
	return nil
}

// runs tells whether the VM has a machine that can be alive. What an earlier boot of the host
// left in the store is settled in recovery.
func (n *names) runs(v vm.VM) bool {
	return (v.State == vm.Running || v.State == vm.Paused) && v.Machine != nil && v.Machine.Process.BootID == n.boot
}

// keepPublished publishes what is new, and again from time to time.
func (n *names) keepPublished(ctx context.Context) {
	for _, p := range n.choice.Others { // of a daemon that was configured otherwise
		bound, cancel := context.WithTimeout(ctx, withdrawLimit)
		if err := p.Withdraw(bound); err != nil {
			n.log.Warn("take back names that were published otherwise", "by", p.Name(), "err", err)
		}
		cancel()
	}
	tick := time.NewTicker(republish)
	defer tick.Stop()
	for {
		n.publish(ctx)
		select {
		case <-n.wake:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (n *names) publish(ctx context.Context) {
	n.publishing.Lock()
	defer n.publishing.Unlock()
	n.mu.Lock()
	state := n.state
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, publishLimit)
	defer cancel()
	err := n.choice.Publish(ctx, state)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil && (n.problem == nil || n.problem.Error() != err.Error()) {
		n.log.Error("publish names", "by", n.choice.Name(), "err", err)
	}
	n.problem = err
}

// objects returns the lines that the hosts file has of ours, once what the store says now has
// been published.
func (n *names) objects(ctx context.Context) ([]host.Object, error) {
	if err := n.derive(ctx); err != nil {
		return nil, err
	}
	if n.choice.Name() == n.hosts.Name() { // a command would keep us waiting
		n.publish(ctx)
	}
	lines, err := n.hosts.Lines()
	if err != nil {
		return nil, err
	}
	var found []host.Object
	for _, r := range lines {
		found = append(found, host.Object{Kind: "hosts line", Name: r.Addr.String() + " " + r.Name + ".vm in " + n.hosts.File, Path: r.ID})
	}
	return found, nil
}

// close ends serving and takes back what was published.
func (n *names) close() error {
	n.cancel()
	n.loops.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), withdrawLimit)
	defer cancel()
	err := n.choice.Withdraw(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	return errors.Join(err, n.host.close(), n.guest.close(), n.resolvers.Close())
}

// Status implements server.Names.
func (n *names) Status() api.DNS {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := api.DNS{Domain: "vm", Publisher: n.choice.Name(), Why: n.choice.Why,
		Listeners: []api.DNSListener{}, Upstreams: []string{}, Records: len(n.state.Records)}
	if n.problem != nil {
		d.Problem, d.Hint = n.problem.Error(), errs.HintOf(n.problem)
	}
	d.Listeners = append(d.Listeners, n.host.told("host")...)
	d.Listeners = append(d.Listeners, n.guest.told("guests")...)
	for _, u := range n.server.Upstreams() {
		d.Upstreams = append(d.Upstreams, u.String())
	}
	return d
}

func (e *ear) told(whom string) []api.DNSListener {
	if !e.want.IsValid() {
		return nil
	}
	l := api.DNSListener{Address: e.want.String(), For: whom}
	if e.listener != nil {
		l.Address = e.listener.Addr().String()
	}
	if e.problem != nil {
		l.Problem = e.problem.Error()
	}
	return []api.DNSListener{l}
}

// Records implements server.Names.
func (n *names) Records() []api.DNSRecord {
	all := []api.DNSRecord{}
	for _, r := range n.server.Records() {
		all = append(all, api.DNSRecord{Name: r.Name + ".vm", IP: r.Addr.String(), VM: r.ID})
	}
	return all
}

// Name implements server.Names.
func (n *names) Name(id string) string {
	for _, r := range n.server.Records() {
		if r.ID == id {
			return r.Name + ".vm"
		}
	}
	return ""
}
