// Package undo owns the rollback stack: what a sequence of steps has acquired, and how
// to give it back if a later step fails. It knows nothing of what the steps do.
//
//	var u undo.Stack
//	defer func() { err = errors.Join(err, u.Rollback(ctx)) }()
//	...
//	u.Push("disk of vm", removeDisk)
//	...
//	u.Disarm() // everything worked: keep it
package undo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Limit bounds one Rollback as a whole. An undo that would outlive it must give up; what
// it leaves is for recovery, which runs the same removers.
const Limit = 30 * time.Second

// Stack holds undo steps. The zero value is empty and armed. It may be used from several
// goroutines.
type Stack struct {
	mu       sync.Mutex
	steps    []step
	disarmed bool
}

type step struct {
	name string
	fn   func(context.Context) error
}

// Push registers fn to give back what name describes: "tap of vm 3f2a". Register before
// acting, with an fn that succeeds when it finds nothing: an action that fails half way
// is then undone too.
func (s *Stack) Push(name string, fn func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{name, fn})
}

// Disarm forgets every step: from now on Rollback does nothing.
func (s *Stack) Disarm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disarmed = true
	s.steps = nil
}

// Rollback runs the steps in reverse order, each once, and empties the stack. It ignores
// ctx's cancellation and deadline (they are often why it runs) but keeps its values, and
// is bounded by [Limit]. A step that fails or panics does not keep the others from
// running; the error joins all failures, each under its step's name.
func (s *Stack) Rollback(ctx context.Context) error {
	s.mu.Lock()
	steps := s.steps
	s.steps = nil
	if s.disarmed {
		steps = nil
	}
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Limit)
	defer cancel()
	var failed []error
	for i := len(steps) - 1; i >= 0; i-- {
		if err := steps[i].run(ctx); err != nil {
			failed = append(failed, fmt.Errorf("undo %s: %w", steps[i].name, err))
		}
	}
	return errors.Join(failed...)
}

func (s step) run(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return s.fn(ctx)
}
