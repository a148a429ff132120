// Package networktest is what tests of networks share.
package networktest

import (
	"runtime"

	"github.com/vishvananda/netns"
)

// In runs do in a network namespace, on a thread that ends with it.
func In(ns netns.NsHandle, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- do()
	}()
	return <-done
}
