//go:build !faults

package host

// Fault is the door through which tests make the host fail. It stands before an effect
// on the host and names it; programs built with the tag "faults" can be told to have that
// effect fail, or to die there. In all others it is nothing.
func Fault(string) error { return nil }
