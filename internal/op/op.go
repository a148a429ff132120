// Package op owns work under way: operations that tell their progress, can be waited for
// and cancelled, and the locks that keep two of them off the same VM. It knows nothing of
// what an operation does.
package op

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"sync"

	"banger/internal/errs"
)

// Event is a step of an operation.
type Event struct {
	Stage       string // what is being done now; with Total set, how far it is
	Done, Total int64
	Warning     string
	Finished    bool
	Err         error  // of a finished operation
	Made        string // by one that has not failed: the name of the image
}

// told is an event and when it was told: the events before it, and their updates, have lower numbers.
type told struct {
	Event
	seq int
}

// Operation is one piece of work. It runs on whether anyone follows it or not.
type Operation struct {
	ID, Kind string

	cancel context.CancelFunc

	mu      sync.Mutex
	subject string        // id of the VM it is about
	made    string        // name of an image
	events  []told        // all of them, but progress within a stage replaces itself
	seq     int           // of the latest
	changed chan struct{} // closed and replaced at every change
	done    bool
}

// Stage tells that the operation has come to the named stage, or how far it is in it. Several may
// go on side by side.
func (o *Operation) Stage(name string, done, total int64) {
	o.add(Event{Stage: name, Done: done, Total: total})
}

// Warn tells something that the person who asked should know.
func (o *Operation) Warn(text string) { o.add(Event{Warning: text}) }

// About sets the VM that the operation is about, once it is known.
func (o *Operation) About(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.subject = id
}

// Subject returns the id of the VM that the operation is about, or "".
func (o *Operation) Subject() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.subject
}

// Made sets the name of the image that the operation makes, once it is known.
func (o *Operation) Made(image string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.made = image
}

// Cancel asks the operation to stop and undo what it did.
func (o *Operation) Cancel() { o.cancel() }

func (o *Operation) add(e Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e.Stage != "" {
		o.events = slices.DeleteFunc(o.events, func(t told) bool { return t.Stage == e.Stage })
	}
	if e.Finished && e.Err == nil {
		e.Made = o.made
	}
	o.seq++
	o.events = append(o.events, told{e, o.seq})
	o.done = e.Finished
	close(o.changed)
	o.changed = make(chan struct{})
}

// Follow calls yield with every event from the first to the last, waiting for those to
// come; of a stage's progress it may miss some. It ends early when ctx does or yield returns false.
func (o *Operation) Follow(ctx context.Context, yield func(Event) bool) {
	for seen := 0; ; {
		o.mu.Lock()
		var news []told
		for _, t := range o.events {
			if t.seq > seen {
				news = append(news, t)
			}
		}
		changed, done := o.changed, o.done
		o.mu.Unlock()
		for _, t := range news {
			seen = t.seq
			if !yield(t.Event) {
				return
			}
		}
		if done {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Wait returns the operation's error once it has finished.
func (o *Operation) Wait(ctx context.Context) error {
	err := ctx.Err()
	o.Follow(ctx, func(e Event) bool {
		if e.Finished {
			err = e.Err
		} else {
			err = ctx.Err()
		}
		return true
	})
	return err
}

// keepFinished is how many finished operations stay to be asked about.
const keepFinished = 256

// Registry holds the operations of a daemon.
type Registry struct {
	base context.Context // of all operations; ends with the daemon

	mu       sync.Mutex
	all      map[string]*Operation
	finished []string // ids, oldest first
	running  sync.WaitGroup
}

// NewRegistry returns a registry whose operations are cancelled when ctx ends.
func NewRegistry(ctx context.Context) *Registry {
	return &Registry{base: ctx, all: map[string]*Operation{}}
}

// Start runs an operation of its own: no request's context reaches it.
func (r *Registry) Start(kind string, run func(context.Context, *Operation) error) *Operation {
	ctx, cancel := context.WithCancel(r.base)
	o := &Operation{ID: newID(), Kind: kind, cancel: cancel, changed: make(chan struct{})}
	r.mu.Lock()
	r.all[o.ID] = o
	r.mu.Unlock()
	r.running.Go(func() {
		defer cancel()
		err := run(ctx, o)
		o.add(Event{Finished: true, Err: err})
		r.retire(o.ID)
	})
	return o
}

func (r *Registry) retire(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finished = append(r.finished, id)
	if len(r.finished) > keepFinished {
		delete(r.all, r.finished[0])
		r.finished = r.finished[1:]
	}
}

// Get returns the operation with this id. errs.NotFound if there is none, or it finished
// long ago.
func (r *Registry) Get(id string) (*Operation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o, ok := r.all[id]; ok {
		return o, nil
	}
	return nil, errs.New(errs.NotFound, "there is no operation %q", id)
}

// Drain waits until no operation runs, or ctx ends.
func (r *Registry) Drain(ctx context.Context) error {
	idle := make(chan struct{})
	go func() {
		r.running.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func newID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b[:])
}
