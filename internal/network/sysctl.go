package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/vishvananda/netlink"

	"banger/internal/errs"
)

// noIPv6 keeps an interface from having IPv6 addresses: guests speak IPv4 only. A kernel
// without IPv6 needs nothing done.
func noIPv6(link string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", link, "disable_ipv6"), []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep IPv6 off %s: %w", link, err)
	}
	return nil
}

// forwardingPath is the sysctl that says whether packets that come in by an interface may
// be forwarded. The kernel asks it of the incoming interface alone.
func forwardingPath(link string) string {
	return filepath.Join("/proc/sys/net/ipv4/conf", link, "forwarding")
}

func forwards(link string) (bool, error) {
	b, err := os.ReadFile(forwardingPath(link))
	return strings.TrimSpace(string(b)) == "1", err
}

func setForwarding(link string, on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	err := os.WriteFile(forwardingPath(link), []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) && !on {
		return nil // the interface has gone
	}
	if err != nil {
		return errs.New(errs.Unavailable, "IPv4 forwarding can't be set on %s", link).Because(err).
			Try("something locks it: sysctl -w net.ipv4.conf.%s.forwarding=%s shows what", link, value)
	}
	return nil
}

// opened remembers, in a file, the interfaces whose forwarding we have switched on, so that
// it is switched off again whatever happens to the daemon. The file goes when that is done.
type opened struct {
	path string
	boot string // of the host now: an earlier boot's sysctls are gone
}

type openedFile struct {
	Boot       string   `json:"boot"`
	Interfaces []string `json:"interfaces"`
}

func (o opened) list() ([]string, error) {
	b, err := os.ReadFile(o.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var f openedFile
	if err := json.Unmarshal(b, &f); err != nil || f.Boot != o.boot {
		return nil, nil // a damaged file tells nothing, nor does that of another boot
	}
	return f.Interfaces, nil
}

func (o opened) save(names []string) error {
	if len(names) == 0 {
		err := os.Remove(o.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	b, err := json.Marshal(openedFile{o.boot, names})
	if err != nil {
		return err
	}
	return renameio.WriteFile(o.path, b, 0o600)
}

// plan tells which interfaces are to forward only because we have them do so: every one that
// has an IPv4 address, for replies to guests come in by it. They are written down here,
// before set acts.
func (o opened) plan(bridge string) ([]string, error) {
	names, err := o.list()
	if err != nil {
		return nil, err
	}
	uplinks, err := uplinks(bridge)
	if err != nil {
		return nil, err
	}
	all := slices.Clone(names)
	for _, name := range uplinks {
		if on, err := forwards(name); err == nil && !on && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	if len(all) > len(names) {
		slices.Sort(all)
		err = o.save(all)
	}
	return all, err
}

// set has the interfaces forward, and the bridge, which does so for as long as it is there.
func (o opened) set(names []string, bridge string) (err error) {
	for _, name := range append(names[:len(names):len(names)], bridge) {
		on, readErr := forwards(name)
		if errors.Is(readErr, fs.ErrNotExist) || readErr == nil && on {
			continue // one that has gone needs nothing
		}
		err = errors.Join(err, setForwarding(name, true))
	}
	return err
}

// close puts back what open did. Where forwarding has been switched on for the whole host
// meanwhile, it is wanted by someone else now and stays.
func (o opened) close() error {
	names, err := o.list()
	if err != nil {
		return err
	}
	if all, err := forwards("all"); err != nil || !all {
		for _, name := range names {
			err = errors.Join(err, setForwarding(name, false))
		}
		if err != nil {
			return err
		}
	}
	return o.save(nil)
}

// uplinks are the interfaces by which replies can come in.
func uplinks(bridge string) (names []string, err error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		l, err := netlink.LinkByIndex(a.LinkIndex)
		if err != nil {
			continue // it has just gone
		}
		if at := l.Attrs(); at.Flags&net.FlagLoopback == 0 && at.Name != bridge && !slices.Contains(names, at.Name) {
			names = append(names, at.Name)
		}
	}
	return names, nil
}
