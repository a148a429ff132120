// Package publish makes banger's names known to the host's own programs, in one of several
// ways: through systemd-resolved, in the hosts file, or by a command of the user's. Each way
// takes the whole of what is to be known, so that doing it again changes nothing and doing
// it after a crash sets it right; and each can take back all that it did. The package knows
// records, not what bears the names.
package publish

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"

	"banger/internal/dns"
)

// State is what the host is to know.
type State struct {
	Records []dns.Record
	Server  netip.AddrPort // that answers for them; invalid: none does
	Link    string         // network interface behind which the hosts are, or empty
	Domains []string       // that the server answers for, without final dots
}

// Publisher makes names known in one way.
type Publisher interface {
	Name() string
	// Publish makes the host know s and nothing else of ours.
	Publish(ctx context.Context, s State) error
	// Withdraw takes back all that was ever published in this way by this banger.
	Withdraw(ctx context.Context) error
}

// door is asked before each step that changes something of the host's ("before save the
// journal") and behind it; its error is the step's. Tests have steps fail or end the process
// there; nil lets all by.
type door func(label string) error

func (d door) step(label string, do func() error) error {
	if d == nil {
		return do()
	}
	err := d("before " + label)
	if err == nil {
		err = do()
	}
	if err == nil {
		err = d("after " + label)
	}
	return err
}

// Config says what there is to choose from.
type Config struct {
	Want    string   // auto, resolved, hosts, exec or none
	Owner   string   // marks what is ours, in the hosts file say: the state directory
	Hosts   string   // the hosts file
	Command []string // of exec: a program and its arguments
	Journal string   // file in which exec keeps what it has made known
	Root    bool     // whether we may change the host's resolution at all
}

// Choice is the publisher that is used, and why.
type Choice struct {
	Publisher
	Why    string
	Others []Publisher // not used, and withdrawn in case they once were
}

// Choose settles which publisher is used.
func Choose(ctx context.Context, c Config) Choice {
	all := map[string]Publisher{
		"resolved": NewResolved(),
		"hosts":    &Hosts{File: c.Hosts, Owner: c.Owner},
		"exec":     &Exec{Command: c.Command, Journal: c.Journal},
		"none":     None{},
	}
	name, why := c.Want, "the config file says so"
	if name == "auto" {
		name, why = automatic(ctx, c)
	}
	choice := Choice{Publisher: all[name], Why: why}
	for n, p := range all {
		if n != name {
			choice.Others = append(choice.Others, p)
		}
	}
	return choice
}

func automatic(ctx context.Context, c Config) (name, why string) {
	switch {
	case len(c.Command) > 0:
		return "exec", "the config file names a command"
	case !c.Root:
		return "none", "without root the host's name resolution can't be changed, nor can it reach VMs"
	case !resolvedIsUsed("/etc/resolv.conf", "/etc/nsswitch.conf"):
		return "hosts", "this host does not resolve names through systemd-resolved"
	}
	if err := ResolvedRuns(ctx); err != nil {
		return "hosts", "systemd-resolved does not run: " + err.Error()
	}
	return "resolved", "this host resolves names through systemd-resolved"
}

// resolvedIsUsed tells whether programs of this host come to systemd-resolved: it is the
// name server that they are told of, or they ask it by way of the C library's nss-resolve.
func resolvedIsUsed(resolvConf, nsswitch string) bool {
	if text, err := os.ReadFile(resolvConf); err == nil && slices.Contains(strings.Fields(string(text)), "127.0.0.53") {
		return true
	}
	text, err := os.ReadFile(nsswitch)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if sources, ok := strings.CutPrefix(strings.TrimSpace(line), "hosts:"); ok {
			return slices.Contains(strings.Fields(sources), "resolve")
		}
	}
	return false
}

// None publishes nothing.
type None struct{}

// Name implements Publisher.
func (None) Name() string { return "none" }

// Publish implements Publisher.
func (None) Publish(context.Context, State) error { return nil }

// Withdraw implements Publisher.
func (None) Withdraw(context.Context) error { return nil }
