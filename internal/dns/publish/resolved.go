package publish

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// Names of systemd-resolved on the bus: org.freedesktop.resolve1(5).
const (
	resolvedBus  = "org.freedesktop.resolve1"
	resolvedPath = dbus.ObjectPath("/org/freedesktop/resolve1")
	resolvedCall = "org.freedesktop.resolve1.Manager."

	// unknownLink is the error about a link that it has not heard of.
	unknownLink = resolvedBus + ".NoSuchLink"

	// hearsWithin bounds how long it takes to hear of a new link: the kernel tells it by
	// netlink, on its own time, and it tells nobody.
	hearsWithin = 2 * time.Second
	asksEvery   = 5 * time.Millisecond
)

// Resolved publishes names by telling systemd-resolved to ask our server about our domains.
// It ties that to a link, and forgets it when the link goes.
type Resolved struct {
	connect func() (*dbus.Conn, error)
	index   func(link string) (int, error)
	within  time.Duration // a link of the host's is known to systemd-resolved
	door    door

	mu   sync.Mutex
	link int // index of the link that we have set; 0: none
}

// NewResolved returns the publisher for this host's systemd-resolved.
func NewResolved() *Resolved {
	return &Resolved{connect: func() (*dbus.Conn, error) { return dbus.ConnectSystemBus() }, index: linkIndex, within: hearsWithin}
}

func linkIndex(link string) (int, error) {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return 0, err
	}
	return i.Index, nil
}

// Name implements Publisher.
func (*Resolved) Name() string { return "resolved" }

// server is an address as SetLinkDNSEx takes it; no name: it is not asked by TLS.
type server struct {
	Family  int32
	Address []byte
	Port    uint16
	Name    string
}

// domain is one as SetLinkDomains takes it.
type domain struct {
	Name        string
	RoutingOnly bool // names in it are asked for here; it is no suffix to search
}

// Publish implements Publisher. The records are the server's to tell.
func (r *Resolved) Publish(ctx context.Context, s State) error {
	if !s.Server.IsValid() || s.Link == "" {
		return r.Withdraw(ctx)
	}
	index, err := r.index(s.Link)
	if err != nil {
		return fmt.Errorf("tell systemd-resolved of %s: %w", s.Link, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.link != 0 && r.link != index {
		if err := r.revert(ctx); err != nil {
			return err
		}
	}
	r.link = index // to be reverted even if only half of it works
	domains := []domain{}
	for _, d := range s.Domains {
		domains = append(domains, domain{d, true})
	}
	const inet = 2 // AF_INET
	servers := []server{{inet, s.Server.Addr().AsSlice(), s.Server.Port(), ""}}
	return r.do(ctx, func(call func(string, ...any) error) error {
		err := call("SetLinkDNSEx", int32(index), servers)
		for deadline := time.Now().Add(r.within); refusedAs(err, unknownLink) && time.Now().Before(deadline); {
			select {
			case <-time.After(asksEvery):
				err = call("SetLinkDNSEx", int32(index), servers)
			case <-ctx.Done():
				return err
			}
		}
		if err != nil {
			return err
		}
		if err := call("SetLinkDomains", int32(index), domains); err != nil {
			return err
		}
		return call("SetLinkDefaultRoute", int32(index), false) // no other name is for us
	})
}

// Withdraw implements Publisher. What an earlier process has set is gone with its link, or is
// set anew with the next.
func (r *Resolved) Withdraw(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.link == 0 {
		return nil
	}
	return r.revert(ctx)
}

// revert takes back what was set on the link. A link or a resolver that is gone has nothing.
func (r *Resolved) revert(ctx context.Context) error {
	err := r.do(ctx, func(call func(string, ...any) error) error { return call("RevertLink", int32(r.link)) })
	if refusedAs(err, unknownLink, "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner") {
		err = nil
	}
	if err == nil {
		r.link = 0
	}
	return err
}

// refusedAs tells whether the bus answered with one of these errors.
func refusedAs(err error, names ...string) bool {
	refused, ok := errors.AsType[dbus.Error](err)
	return ok && slices.Contains(names, refused.Name)
}

// do makes calls over a connection of its own: there are few, and the bus may be restarted.
func (r *Resolved) do(ctx context.Context, calls func(call func(method string, args ...any) error) error) error {
	conn, err := r.connect()
	if err != nil {
		return fmt.Errorf("reach systemd-resolved: %w", err)
	}
	defer conn.Close()
	object := conn.Object(resolvedBus, resolvedPath)
	return calls(func(method string, args ...any) error {
		err := r.door.step("call "+method, func() error { return object.CallWithContext(ctx, resolvedCall+method, 0, args...).Err })
		if err != nil {
			return fmt.Errorf("systemd-resolved: %s: %w", method, err)
		}
		return nil
	})
}

// ResolvedRuns tells why systemd-resolved can't be used, if so.
func ResolvedRuns(ctx context.Context) error {
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		return err
	}
	defer conn.Close()
	var owned bool
	err = conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, resolvedBus).Store(&owned)
	if err == nil && !owned {
		err = errors.New("nobody has its name on the bus")
	}
	return err
}
