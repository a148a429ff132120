package network

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/nftables"
)

// firewalld rejects what comes from an interface that is in none of its zones. So the bridge
// is put in the zone of those it lets by, at run time only and by its own interface on the
// bus: what guests may is settled in our own table. Where someone has put the bridge in a
// zone it stays there.
const (
	firewalldTable = "firewalld" // of nftables
	firewalldBus   = "org.fedoraproject.FirewallD1"
	firewalldPath  = dbus.ObjectPath("/org/fedoraproject/FirewallD1")
	firewalldZones = firewalldBus + ".zone."   // as they are
	firewalldKept  = firewalldBus + ".config." // as a reload makes them
	trustedZone    = "trusted"

	// firewalldLimit bounds what is asked of it: a verb of the user's waits.
	firewalldLimit = 5 * time.Second
)

// firewalldFilters tells whether firewalld has rules in the kernel.
func firewalldFilters() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("reach nftables: %w", err)
	}
	tables, err := ownTables(conn, firewalldTable)
	return len(tables) > 0, err
}

// zoneInFirewalld is the zone that the bridge is in, if any. Asked tells whether there is a
// firewalld at all.
func zoneInFirewalld(bridge string) (zone string, asked bool, err error) {
	err = withFirewalld(func(call firewalldCall) (err error) {
		zone, err = call(firewalldZones+"getZoneOfInterface", bridge)
		asked = err == nil
		return err
	})
	return zone, asked, err
}

// allowInFirewalld has firewalld let the bridge's packets by.
func allowInFirewalld(bridge string) error {
	return withFirewalld(func(call firewalldCall) error {
		zone, err := call(firewalldZones+"getZoneOfInterface", bridge)
		if err == nil && zone == "" {
			_, err = call(firewalldZones+"addInterface", trustedZone, bridge)
		}
		return err
	})
}

// disallowInFirewalld takes the bridge out of the zone again. Finding it in none, in another,
// or where the host's owner keeps it for good is success.
func disallowInFirewalld(bridge string) error {
	return withFirewalld(func(call firewalldCall) error {
		zone, err := call(firewalldZones+"getZoneOfInterface", bridge)
		if err != nil || zone != trustedZone {
			return err
		}
		zone, err = call(firewalldKept+"getZoneOfInterface", bridge)
		if err != nil || zone == trustedZone {
			return err
		}
		_, err = call(firewalldZones+"removeInterface", trustedZone, bridge)
		return err
	})
}

// firewalldCall calls a method, given with its interface, that answers with the name of a zone.
type firewalldCall func(method string, args ...any) (zone string, err error)

// withFirewalld makes calls, where firewalld has rules in the kernel and runs, over a
// connection of its own: there are few, and the bus may be restarted. Rules of one that does
// not run, or that can't be asked, are the doctor's to name.
func withFirewalld(calls func(firewalldCall) error) error {
	if filters, err := firewalldFilters(); err != nil || !filters {
		return err
	}
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		return nil
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), firewalldLimit)
	defer cancel()
	err = calls(func(method string, args ...any) (zone string, err error) {
		path := firewalldPath
		if strings.HasPrefix(method, firewalldKept) {
			path += "/config"
		}
		err = conn.Object(firewalldBus, path).CallWithContext(ctx, method, dbus.FlagNoAutoStart, args...).Store(&zone)
		return zone, err
	})
	refused, ok := errors.AsType[dbus.Error](err)
	switch {
	case ok && (refused.Name == "org.freedesktop.DBus.Error.ServiceUnknown" || refused.Name == "org.freedesktop.DBus.Error.NameHasNoOwner"):
		return nil
	case err != nil:
		return fmt.Errorf("have firewalld let guests by: %w", err)
	}
	return nil
}
