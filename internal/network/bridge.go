package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"

	"banger/internal/errs"
)

// Options say whose bridge it is and what it is to be called.
type Options struct {
	State   string // state directory: its path marks all that we make on the host
	BootID  string // of the host's running boot
	Name    string // of the bridge; empty: the first banger0, banger1… that is free
	Log     *slog.Logger
	Noticed func(problem string) // called when something comes up that people should know
}

// Bridge keeps the host as the VMs on it need it: there is a bridge while one is attached,
// and nothing at all when none is. What others change of it is set right again.
type Bridge struct {
	Options
	kernel kernel

	mu          sync.Mutex // held for each change of the host
	ports       map[string]Port
	taps        map[string]*os.File // that this process holds open, by VM id
	leaving     map[string]*os.File // those of VMs that are detached
	listeners   listeners
	rules       Ruleset // as installed; nil while nothing is
	name        string  // of the bridge, while there is one
	unforwarded error   // why packets can not be forwarded, or nil
	overlap     string  // what the subnet overlaps, or empty
	usable      bool    // Check has succeeded
	unsettled   bool    // Detach has left something to do

	retryAfter time.Duration // what could not be set is tried again

	stop    func()
	watched sync.WaitGroup
	closing context.Context // until Close
	close   context.CancelFunc
}

// settleAfter is how long after a VM's port has gone that is settled, unless someone looks. The
// kernel takes up to 60 ms to remove the bridge and its rules with the last port, and another VM
// that comes at once would wait for that, and then for their making.
const settleAfter = 2 * time.Second

// retryAfter is after how long what could not be set is tried again, when nothing tells that it
// could be now: firewalld is silent while it starts, say.
const retryAfter = 10 * time.Second

// Open returns the bridge of a state directory. It changes nothing on the host.
func Open(o Options) *Bridge {
	b := &Bridge{
		Options: o, kernel: kernel{ownerAlias(o.State), linkGroup(o.State), opened{filepath.Join(o.State, "forwarding.json"), o.BootID}},
		ports: map[string]Port{}, taps: map[string]*os.File{}, leaving: map[string]*os.File{},
		stop: func() {}, retryAfter: retryAfter,
	}
	b.closing, b.close = context.WithCancel(context.Background())
	return b
}

// Check tells whether VMs can be bridged here, by trying what that takes. errs.Unavailable,
// or errs.Conflict if the bridge's name is that of another's interface.
func (b *Bridge) Check() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !root() {
		return errs.New(errs.Unavailable, "bridge networking takes root").Try("use --net user, or run bangerd as root")
	}
	if _, _, err := findBridge(b.kernel.owner, b.Name); err != nil {
		return err
	}
	if b.usable {
		return nil
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return errs.New(errs.Unavailable, "there is no bridge networking without /dev/net/tun").Because(err).Try("modprobe tun, or use --net user")
	}
	tun.Close()
	if err := tryRules(); err != nil {
		return errs.New(errs.Unavailable, "nftables does not do here what bridge networking takes").Because(err).Try("use --net user")
	}
	b.usable = true
	return nil
}

// tryRules has the kernel check a ruleset like ours and throw it away, in one transaction.
func tryRules() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	c := Config{Bridge: "banger-try", Table: "banger_try", Group: 1, Ports: []Port{{VM: "000000000000", MAC: "02:00:00:00:00:00", Address: netip.MustParsePrefix("10.0.0.2/29")}}}
	for _, t := range Rules(c, nil) {
		table := &nftables.Table{Family: t.Family, Name: t.Name}
		conn.AddTable(table)
		if err := addSets(conn, table, t.Sets); err != nil {
			return err
		}
		for _, chain := range t.Chains {
			addChain(conn, table, chain)
		}
		conn.DelTable(table)
	}
	return conn.Flush()
}

// ChooseSubnet picks a subnet that overlaps nothing of the host's.
func (b *Bridge) ChooseSubnet() (netip.Prefix, error) {
	used, err := b.used()
	if err != nil {
		return netip.Prefix{}, err
	}
	return ChooseSubnet(used)
}

// CheckSubnet refuses a subnet that overlaps what the host uses. errs.Conflict.
func (b *Bridge) CheckSubnet(subnet netip.Prefix) error {
	used, err := b.used()
	if err != nil {
		return err
	}
	if u, taken := Overlap(subnet, used); taken {
		return errs.New(errs.Conflict, "the subnet %s overlaps %s", subnet, u.By).Try("leave the subnet out, here or in the config file, and one is chosen that overlaps nothing")
	}
	return nil
}

func (b *Bridge) used() ([]Used, error) {
	name, bridge, err := findBridge(b.kernel.owner, b.Name)
	if err != nil {
		return nil, err
	}
	if bridge == nil {
		name = ""
	}
	return UsedByHost(name)
}

// Restore has exactly these ports be there. It is for what an earlier daemon left, and for
// addresses that have changed: TAPs that others hold stay as they are.
func (b *Bridge) Restore(_ context.Context, ports []Port) error {
	if !root() && len(ports) == 0 {
		return nil // and there was nothing before
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.listeners.close() // they know old addresses
	b.ports = map[string]Port{}
	for _, p := range ports {
		b.ports[p.VM] = p
	}
	if err = errors.Join(err, b.apply()); err != nil {
		return err
	}
	for _, p := range ports {
		if err := b.listeners.set(p.VM, p.Address.Addr(), p.Forwards); err != nil { // taken meanwhile
			b.notice(fmt.Sprintf("a port is not forwarded any more: %v", err))
		}
	}
	return nil
}

// Attach makes a VM's port and opens its forwards. The TAP is for the VMM: it lives until
// both that and this Bridge have let go of it. The caller does not close it. It is nil where
// the VMM opens the TAP by name; then it lives until Detach.
func (b *Bridge) Attach(_ context.Context, p Port) (_ *os.File, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f := b.leaving[p.VM]; f != nil {
		delete(b.leaving, p.VM)
		f.Close()
	}
	if subnet := b.config().Subnet(); subnet.IsValid() && subnet != p.Address.Masked() {
		return nil, errs.New(errs.Internal, "the address %s is not of the subnet %s", p.Address, subnet)
	}
	for _, q := range b.ports {
		if q.Address.Addr() == p.Address.Addr() && q.VM != p.VM {
			return nil, errs.New(errs.Internal, "the address %s is that of VM %s", p.Address.Addr(), q.VM)
		}
	}
	b.ports[p.VM] = p
	defer func() {
		if err != nil {
			b.detach(p.VM)
		}
	}()
	if err := b.apply(); err != nil {
		return nil, err
	}
	f, err := b.kernel.connect(b.name, p)
	if err != nil {
		return nil, err
	}
	if f != nil {
		b.taps[p.VM] = f
	}
	return f, b.listeners.set(p.VM, p.Address.Addr(), p.Forwards)
}

// Forward has exactly these forwards be open for an attached VM.
func (b *Bridge) Forward(_ context.Context, vm string, want []Forward) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.ports[vm]
	if !ok {
		return errs.New(errs.Conflict, "VM %s is not on the bridge", vm)
	}
	if err := b.listeners.set(vm, p.Address.Addr(), want); err != nil {
		return err
	}
	p.Forwards = want
	b.ports[vm] = p
	return nil
}

// Detach takes a VM's port away, whose VMM has ended. Finding none is success. What takes
// the kernel long (it removes a TAP in 16 ms) is done behind the caller's back, see settleAfter;
// [Bridge.Objects] has it done, and a daemon that dies before leaves a TAP that nobody has open, which is none.
func (b *Bridge) Detach(_ context.Context, vm string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.ports[vm]; ok {
		return b.detach(vm)
	}
	return nil
}

// detach is Detach with the lock held.
func (b *Bridge) detach(vm string) error {
	delete(b.ports, vm)
	if f := b.taps[vm]; f != nil {
		delete(b.taps, vm)
		b.leaving[vm] = f
	}
	err := b.listeners.set(vm, netip.Addr{}, nil)
	b.unsettled = true
	b.watched.Go(b.settle)
	return err
}

// settle does what Detach has left, in a while.
func (b *Bridge) settle() {
	select {
	case <-time.After(settleAfter):
	case <-b.closing.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settleNow()
}

// settleNow is settle with the lock held.
func (b *Bridge) settleNow() {
	if !b.unsettled {
		return
	}
	b.unsettled = false
	for vm, f := range b.leaving {
		delete(b.leaving, vm)
		f.Close()
	}
	if err := b.apply(); err != nil {
		b.unsettled = true // whoever comes next tries again
		b.Log.Error("take a VM's port away", "err", err)
	}
}

// config is what is wanted now. The lock is held.
func (b *Bridge) config() Config {
	c := Config{Bridge: b.name, Table: tableName(b.State), Group: linkGroup(b.State)}
	for _, p := range b.ports {
		c.Ports = append(c.Ports, p)
	}
	slices.SortFunc(c.Ports, func(x, y Port) int { return strings.Compare(x.VM, y.VM) })
	return c
}

// apply makes the host what the ports want. The lock is held.
func (b *Bridge) apply() error {
	name, _, err := findBridge(b.kernel.owner, b.Name)
	if err != nil && len(b.ports) > 0 {
		return err
	}
	b.name = name
	was := b.rules
	b.rules = nil
	rules, forwarding, err := b.kernel.apply(b.config(), was)
	if err != nil {
		return err
	}
	if forwarding != nil && (b.unforwarded == nil || b.unforwarded.Error() != forwarding.Error()) {
		b.Log.Warn("guests may not reach beyond this host", "err", forwarding)
	}
	b.rules, b.unforwarded = rules, forwarding
	b.look()
	return nil
}

// look sees whether something of the host's overlaps the subnet. The lock is held.
func (b *Bridge) look() {
	was := b.overlap
	b.overlap = ""
	subnet := b.config().Subnet()
	if !subnet.IsValid() {
		return
	}
	used, err := UsedByHost(b.name)
	if err != nil {
		b.Log.Warn("look for overlapping routes", "err", err)
		return
	}
	if u, taken := Overlap(subnet, used); taken {
		b.overlap = u.By
	}
	if b.overlap != "" && b.overlap != was {
		b.notice(overlapText(subnet, b.overlap))
	}
}

func overlapText(subnet netip.Prefix, by string) string {
	return fmt.Sprintf("the subnet of the VMs, %s, overlaps %s; to move it: banger network move", subnet, by)
}

func (b *Bridge) notice(problem string) {
	b.Log.Warn(problem)
	if b.Noticed != nil {
		b.Noticed(problem)
	}
}

// Close lets go of the bridge. VMs that are attached stay so, and the host as it is for
// them; forwards end until the next daemon opens them again.
func (b *Bridge) Close() error {
	b.stop()
	b.close()
	b.watched.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.listeners.close()
	for vm, f := range b.taps {
		err = errors.Join(err, f.Close())
		delete(b.taps, vm)
	}
	return err
}
