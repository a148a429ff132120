package image

import (
	"context"
	"sync"
)

// flights is the work going on that others may wait for too.
type flights struct {
	mu  sync.Mutex
	all map[string]*flight
}

// flight is work whose result several callers get.
type flight struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when image and err are there
	image  Image
	err    error

	mu        sync.Mutex
	followers map[int]Progress
	next      int
}

// Share runs make unless it runs already for a caller with an equal key: then it waits for
// that, and both get its result. Each sees the progress. The work is cancelled when all who wait
// for it have given up.
func (s *Store) Share(ctx context.Context, key string, progress Progress, make func(context.Context, Progress) (Image, error)) (Image, error) {
	f, leave := s.flights.join(ctx, key, progress, make)
	defer leave()
	select {
	case <-f.done:
		return f.image, f.err
	case <-ctx.Done():
	}
	if !leave() {
		return Image{}, ctx.Err()
	}
	<-f.done // it was for this caller alone, who sees it undone, or finished after all
	return f.image, f.err
}

// join takes part in the flight of that key, and starts it where there is none. leave tells
// whether nobody was left, so that the work has been cancelled.
func (fs *flights) join(ctx context.Context, key string, progress Progress, work func(context.Context, Progress) (Image, error)) (_ *flight, leave func() (cancelled bool)) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f, ok := fs.all[key]
	if !ok {
		if fs.all == nil {
			fs.all = map[string]*flight{}
		}
		run, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight{cancel: cancel, done: make(chan struct{}), followers: map[int]Progress{}}
		fs.all[key] = f
		go func() {
			f.image, f.err = work(run, f.tell)
			cancel()
			close(f.done)
		}()
	}
	id := f.follow(progress)
	return f, func() bool {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		if !f.unfollow(id) {
			return false
		}
		if fs.all[key] == f { // who comes now starts anew
			delete(fs.all, key)
		}
		f.cancel()
		return true
	}
}

func (f *flight) tell(stage string, done, total int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.followers {
		p(stage, done, total)
	}
}

func (f *flight) follow(p Progress) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next++
	f.followers[f.next] = p
	return f.next
}

// unfollow tells whether that was the last follower.
func (f *flight) unfollow(id int) (last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, there := f.followers[id]
	delete(f.followers, id)
	return there && len(f.followers) == 0
}
