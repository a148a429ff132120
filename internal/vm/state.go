package vm

import (
	"slices"

	"banger/internal/errs"
)

// State is where a VM is in its life.
type State string

const (
	Creating State = "creating" // its row exists, its disk perhaps
	Running  State = "running"  // its machine runs and its guest has answered
	Paused   State = "paused"   // its machine runs, its CPUs do not
	Stopping State = "stopping" // its guest was asked to end
	Stopped  State = "stopped"  // it has a disk and no machine
	Failed   State = "failed"   // its machine ended by itself, or something of it can't be removed; Reason says which
	Deleting State = "deleting" // it is being taken away, and nothing but that can happen to it

	Suspended State = "suspended" // its machine is kept in files, to go on where it was
)

// transitions is the whole life of a VM. A start needs no state of its own: until the
// guest has answered the VM is what it was, and its pending resources tell the intent.
// From deleting a VM goes away with its row.
var transitions = map[State][]State{
	Creating: {Running, Stopped, Failed, Deleting},
	Running:  {Paused, Stopping, Stopped, Suspended, Failed, Deleting},
	Paused:   {Running, Stopping, Stopped, Suspended, Failed, Deleting},
	Stopping: {Running, Stopped, Failed, Deleting},
	Stopped:  {Running, Failed, Deleting},
	Failed:   {Running, Stopped, Deleting},
	Deleting: {Failed},

	Suspended: {Running, Stopped, Failed, Deleting},
}

// Valid tells whether there is such a state.
func (s State) Valid() bool { _, ok := transitions[s]; return ok }

// To moves v to the next state for the given reason, which is empty where there is nothing
// to tell. errs.Conflict if the table does not allow it.
func (v *VM) To(next State, reason string) error {
	if next != v.State && !slices.Contains(transitions[v.State], next) {
		return errs.New(errs.Conflict, "VM %s is %s and can't become %s", v.Name, v.State, next)
	}
	v.State, v.Reason = next, reason
	return nil
}

// HasMachine tells whether a VM in this state has a VMM process.
func (s State) HasMachine() bool { return s == Running || s == Paused || s == Stopping }
