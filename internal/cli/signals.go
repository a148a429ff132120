package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// interrupt is the signal that ended a command of banger's own.
type interrupt syscall.Signal

func (i interrupt) String() string {
	if syscall.Signal(i) == syscall.SIGINT {
		return "interrupted"
	}
	return syscall.Signal(i).String()
}

func (i interrupt) Error() string { return i.String() }

// interruptible returns a context that SIGINT, SIGTERM or SIGHUP ends, which cancels the
// operation under way. A second one ends the process as if it had never been caught.
func interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ch := make(chan os.Signal, 1)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		catch(ch, s)
	}
	// Caught so that a write to a closed pipe is an error that leaves time to restore the
	// terminal. Not ignored, for that would be inherited by ssh.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	go func() {
		select {
		case s := <-ch:
			signal.Stop(ch)
			cancel(interrupt(s.(syscall.Signal)))
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		cancel(nil)
	}
}

// catch sends s to ch, unless whoever started banger had it ignored, as nohup does.
func catch(ch chan<- os.Signal, s os.Signal) {
	if !signal.Ignored(s) {
		signal.Notify(ch, s)
	}
}

// interruption returns the signal that ended ctx.
func interruption(ctx context.Context) (interrupt, bool) {
	return errors.AsType[interrupt](context.Cause(ctx))
}

// forwarded are the signals that go on to the guest's command, by their protocol names.
var forwarded = map[os.Signal]string{
	syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP", syscall.SIGQUIT: "QUIT",
	syscall.SIGUSR1: "USR1", syscall.SIGUSR2: "USR2",
}

// Three interrupts within giveUpWithin leave a command that does not end by them.
const (
	giveUpAfter  = 3
	giveUpWithin = 2 * time.Second
)

// forward sends the signals that reach banger to the guest's command, until stop is
// called. giveUp is called when the person insists on leaving.
func forward(giveUp func()) (to <-chan string, stop func()) {
	in := make(chan os.Signal, 16)
	for s := range forwarded {
		catch(in, s)
	}
	out, done := make(chan string, cap(in)), make(chan struct{})
	go func() {
		var interrupts []time.Time
		for {
			var s os.Signal
			select {
			case s = <-in:
			case <-done:
				return
			}
			if s == syscall.SIGINT {
				interrupts = append(interrupts, time.Now())
				if n := len(interrupts); n >= giveUpAfter && time.Since(interrupts[n-giveUpAfter]) < giveUpWithin {
					giveUp()
					return
				}
			}
			select {
			case out <- forwarded[s]:
			default: // nobody takes them: the command has not started or the guest hangs
			}
		}
	}()
	return out, func() {
		signal.Stop(in)
		close(done)
	}
}
