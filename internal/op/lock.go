package op

import (
	"context"
	"sync"
	"time"

	"banger/internal/errs"
)

// lockPatience is how long a caller waits for a lock before it is told who holds it.
const lockPatience = 20 * time.Second

// Locks holds one lock for each VM, which names what its holder is doing.
type Locks struct {
	mu   sync.Mutex
	held map[string]*hold
}

type hold struct {
	doing string
	freed chan struct{}
}

// Lock takes the lock of the VM id. doing completes the sentence "the VM is being …". It
// waits a while for another holder; errs.Busy names that holder when it does not end.
func (l *Locks) Lock(ctx context.Context, id, doing string) (unlock func(), err error) {
	patience := time.NewTimer(lockPatience)
	defer patience.Stop()
	for {
		l.mu.Lock()
		h, taken := l.held[id]
		if !taken {
			h = &hold{doing: doing, freed: make(chan struct{})}
			if l.held == nil {
				l.held = map[string]*hold{}
			}
			l.held[id] = h
			l.mu.Unlock()
			return func() { l.release(id, h) }, nil
		}
		l.mu.Unlock()
		select {
		case <-h.freed:
		case <-patience.C:
			return nil, errs.New(errs.Busy, "the VM is being %s", h.doing).Try("try again in a moment")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (l *Locks) release(id string, h *hold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, id)
	close(h.freed)
}
