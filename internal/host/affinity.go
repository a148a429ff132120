package host

import (
	"fmt"
	"math/rand/v2"
	"runtime"

	"golang.org/x/sys/unix"
)

// onOneCPU calls start, which starts a process, such that all of the process's threads
// stay on one of the CPUs that this process may use.
func onOneCPU(start func() error) error {
	done := make(chan error)
	go func() {
		// A child gets the CPUs of the thread that it is forked by. Never unlocked, this
		// one ends with its goroutine.
		runtime.LockOSThread()
		var all, one unix.CPUSet
		err := unix.SchedGetaffinity(0, &all)
		if err == nil {
			one.Set(anyOf(all))
			err = unix.SchedSetaffinity(0, &one)
		}
		if err != nil {
			done <- fmt.Errorf("choose a CPU: %w", err)
			return
		}
		done <- start()
	}()
	return <-done
}

// anyOf picks one, so that processes that stay on one CPU spread over all.
func anyOf(set unix.CPUSet) int {
	nth := rand.IntN(set.Count())
	for cpu := 0; ; cpu++ {
		if !set.IsSet(cpu) {
			continue
		}
		if nth == 0 {
			return cpu
		}
		nth--
	}
}
