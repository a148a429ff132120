package guestd

import (
	"context"
	"time"

	"banger/internal/guest/proto"
)

// System is what the agent does to the running kernel and its init. Linux implements it;
// tests keep a record instead.
type System interface {
	SetHostname(name string) error
	SetTime(t time.Time) error
	Now() time.Time
	AddEntropy(random []byte) error
	SetLinks(ctx context.Context, links []proto.Link) error

	// SetBootID has the kernel tell this boot id from now on.
	SetBootID(id string) error
	// Shed gives up what a clone may not have in common with this machine: addresses, and what
	// the journal of that init knows of ids. The machine is not used any more as it is.
	Shed(init string) error
	// ReloadJournal has the journal of that init, if it has one, begin anew under the machine's
	// and the boot's ids of now.
	ReloadJournal(init string)

	Sync()
	Freeze(root string) error
	Thaw(root string) error
	// GrowRoot makes the filesystem at root fill its device.
	GrowRoot(root string) (proto.GrowRoot, error)

	// Trim tells the device of the filesystem at root what that does not need.
	Trim(root string) (proto.Trim, error)
	// Free lists what the filesystem at root does not need, from an offset on.
	Free(root string, offset int64) (proto.Free, error)

	// Exposed runs start, which starts a process that must not inherit the agent's
	// protection from the OOM killer.
	Exposed(start func() error) error

	// ReloadNetwork has the image's own network programs, if they run under its init, read
	// what they are told of the network anew: of the resolver only if that has changed. It
	// tells whether there are any.
	ReloadNetwork(init string, resolver bool) (found bool)

	// WaitBoot returns the state that the image's init, "" for none, reached.
	WaitBoot(ctx context.Context, init string) (string, error)
	// Shutdown asks the image's init, "" for none, to power the machine off or to reboot it.
	Shutdown(init string, reboot bool) error
}
