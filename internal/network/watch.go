package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch follows what others change of nftables, routes, addresses, interfaces and forwarding, and sets
// right what was ours, until Close.
func (b *Bridge) Watch() error {
	rules, err := listenTo(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	routes, err := listenTo(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_NETCONF)
	if err != nil {
		return errors.Join(fmt.Errorf("watch routes: %w", err), rules.Close())
	}
	filters, rest, done := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
	b.watched.Go(func() { hear(rules, filters, othersRules) })
	b.watched.Go(func() { hear(routes, rest, othersLinks) })
	b.watched.Go(func() { follow(filters, rest, done, b.retryAfter, b.mend) })
	b.stop = func() {
		b.stop = func() {}
		close(done)
		rules.Close()
		routes.Close()
	}
	return nil
}

func listenTo(family int, groups ...uint32) (*netlink.Conn, error) {
	conn, err := netlink.Dial(family, nil)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if err := conn.JoinGroup(g); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return conn, nil
}

// hear tells changed of every message that counts, until the connection is closed.
func hear(conn *netlink.Conn, changed chan<- struct{}, counts func(netlink.Message) bool) {
	for {
		messages, err := conn.Receive()
		lost := errors.Is(err, unix.ENOBUFS) // there were more than the socket holds
		if err != nil && !lost {
			return
		}
		for _, m := range messages {
			lost = lost || counts(m)
		}
		if lost {
			select {
			case changed <- struct{}{}:
			default: // it is told already
			}
		}
	}
}

// newGeneration is the message that ends each transaction; it tells who committed it.
const (
	newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	generationPID = 2 // NFTA_GEN_PROC_PID
)

// othersRules tells whether a message ends a transaction of another process.
func othersRules(m netlink.Message) bool {
	const header = 4 // nfgenmsg
	if m.Header.Type != newGeneration || len(m.Data) < header {
		return false
	}
	attrs, err := netlink.UnmarshalAttributes(m.Data[header:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Type == generationPID && len(a.Data) == 4 {
			return int(binary.BigEndian.Uint32(a.Data)) != os.Getpid()
		}
	}
	return true
}

// othersLinks tells whether a message may be of anything but a guest's TAP. That comes, changes a
// few times while its VMM starts, and goes, with nothing else having changed.
func othersLinks(m netlink.Message) bool {
	if m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg {
		return true
	}
	attrs, err := netlink.UnmarshalAttributes(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Type == unix.IFLA_IFNAME {
			return VMOf(unix.ByteSliceToString(a.Data)) == ""
		}
	}
	return true
}

// How long changes of others are let come to an end before they are looked at: of rules, without
// which guests are not filtered, and of the rest, of which the start of a VM has its part. To look
// takes milliseconds that a VM could start in.
const (
	shortPause = 200 * time.Millisecond
	longPause  = time.Second
)

// follow calls mend once changes have had time to come to an end, and again while that tells that
// not all is as it should be: a time after it first did, however much changes meanwhile.
func follow(filters, rest, done <-chan struct{}, retryAfter time.Duration, mend func(retry bool) bool) {
	var due, again <-chan time.Time
	soon := false // due is for filters, which do not wait for the rest
	for {
		retry := false
		select {
		case <-filters:
			if !soon {
				due, soon = time.After(shortPause), true
			}
			continue
		case <-rest:
			if due == nil {
				due = time.After(longPause)
			}
			continue
		case <-due:
			due, soon = nil, false
		case <-again:
			again, retry = nil, true
		case <-done:
			return
		}
		if mend(retry) {
			again = nil
		} else if again == nil {
			again = time.After(retryAfter)
		}
	}
}

// mend sets right what is not as it was made. It tells whether all is as it should be; what could
// not be set before is tried when that is asked for, not at every turn.
func (b *Bridge) mend(retry bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ports) == 0 {
		return true
	}
	err := b.mendNow(retry)
	if err != nil {
		b.Log.Error("mend the network", "err", err)
	}
	return err == nil && b.unforwarded == nil
}

// mendNow is mend with the lock held.
func (b *Bridge) mendNow(retry bool) error {
	same, err := intact(b.rules)
	if err == nil && same {
		same, err = b.kernel.bridged(b.config())
	}
	if err != nil {
		return err
	}
	if !same {
		b.notice("someone changed what banger had set up of this host's network; it is set up again")
		b.rules = nil
		return b.apply()
	}
	// An interface may have come that does not forward yet.
	ready, err := b.kernel.forwarding(b.config())
	if fine := b.unforwarded == nil; err != nil || ready != fine || !ready && retry {
		return errors.Join(err, b.apply())
	}
	b.look()
	return nil
}
