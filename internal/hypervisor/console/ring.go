package console

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
)

const (
	// consoleLog is what came last of a console. What came before it is beside that.
	consoleLog = "console.log"

	// logBytes is the size at which the log starts anew; with the one before it the
	// console of a machine takes at most twice that.
	logBytes = 8 << 20

	// oldSuffix makes the name of an older file of that of the newest.
	oldSuffix = ".1"

	// newSuffix makes the name of one that is about to be the newest.
	newSuffix = ".new"

	lostNote = "\r\n[banger: output that came too fast is left out here]\r\n"
)

// Ring is a log on disk that takes a bounded space: two files, of which the older is
// dropped when the newer is full. Many may read while one writes.
type Ring struct {
	path  string // of the newer
	limit int64  // of each, in bytes

	mu      sync.Mutex
	file    *os.File
	size    int64
	number  int           // counts the files ever begun; that of file
	changed chan struct{} // closed and replaced whenever there is more, or closed is set
	closed  bool
}

// OpenRing continues the log at path, or begins one. It takes twice the limit.
func OpenRing(path string, limit int64) (*Ring, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Ring{path: path, limit: limit, file: f, size: info.Size(), number: 1, changed: make(chan struct{})}, nil
}

// Write appends to the log. It reports no error: on a full disk output is lost, but the
// console must be read on, or the guest would stand still.
func (r *Ring) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return len(b), nil
	}
	for rest := b; len(rest) > 0; {
		if r.size >= r.limit && !r.rotate() {
			break
		}
		n, err := r.file.Write(rest[:min(int64(len(rest)), r.limit-r.size)])
		r.size += int64(n)
		rest = rest[n:]
		if err != nil {
			break
		}
	}
	r.wake()
	return len(b), nil
}

// rotate begins a new file. Readers keep the one they have open. Where there is no room for one
// all stays as it is, to be tried again.
func (r *Ring) rotate() bool {
	f, err := os.OpenFile(r.path+newSuffix, os.O_WRONLY|os.O_CREATE|os.O_APPEND|os.O_TRUNC, 0o600)
	if err != nil {
		return false
	}
	err = os.Rename(r.path, r.path+oldSuffix)
	if err == nil || errors.Is(err, os.ErrNotExist) { // someone has removed it
		err = os.Rename(r.path+newSuffix, r.path)
	}
	if err != nil {
		f.Close()
		return false
	}
	r.file.Close()
	r.file, r.size = f, 0
	r.number++
	return true
}

func (r *Ring) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Close ends the log; those who follow it read the rest and then the end.
func (r *Ring) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	r.wake()
	return r.file.Close()
}

// ringReader reads a ring from some place to its end, and, if it follows, on.
type ringReader struct {
	ring   *Ring
	follow bool
	stop   <-chan struct{} // ends a wait for more

	mu     sync.Mutex // held by Read and by Close
	file   *os.File
	number int    // of file
	note   []byte // to be read first

	closeOnce sync.Once
	closed    chan struct{}
}

// reader reads the ring from its oldest byte, or only what comes from now on.
func (r *Ring) reader(stop <-chan struct{}, follow, fromNow bool) (*ringReader, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rr := &ringReader{ring: r, follow: follow, stop: stop, closed: make(chan struct{})}
	if !fromNow {
		f, err := os.Open(r.path + oldSuffix)
		if err == nil {
			rr.file, rr.number = f, r.number-1
			return rr, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	f, err := os.Open(r.path)
	if err != nil {
		return nil, err
	}
	if fromNow {
		if _, err := f.Seek(r.size, io.SeekStart); err != nil {
			f.Close()
			return nil, err
		}
	}
	rr.file, rr.number = f, r.number
	return rr, nil
}

func (rr *ringReader) Read(b []byte) (int, error) {
	rr.mu.Lock()
	defer rr.mu.Unlock()
	for {
		select {
		case <-rr.closed:
			return 0, os.ErrClosed
		default:
		}
		if len(rr.note) > 0 {
			n := copy(b, rr.note)
			rr.note = rr.note[n:]
			return n, nil
		}
		// Taken before the read: what comes after it closes this very channel.
		changed, newest, ended := rr.ring.state()
		if n, err := rr.file.Read(b); n > 0 || (err != nil && !errors.Is(err, io.EOF)) {
			return n, err
		}
		switch {
		case rr.number < newest:
			// Nothing is added to a file after the next was begun, so this one is read out.
			if err := rr.advance(); err != nil {
				return 0, err
			}
		case ended || !rr.follow:
			return 0, io.EOF
		default:
			select {
			case <-changed:
			case <-rr.stop:
				return 0, io.EOF
			case <-rr.closed:
				return 0, os.ErrClosed
			}
		}
	}
}

func (r *Ring) state() (changed <-chan struct{}, newest int, ended bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed, r.number, r.closed
}

// advance moves to the next file that still exists.
func (rr *ringReader) advance() error {
	r := rr.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	next, path := rr.number+1, r.path
	if next < r.number {
		path += oldSuffix
		if next < r.number-1 {
			rr.note = []byte(lostNote)
		}
		next = r.number - 1
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	rr.file.Close()
	rr.file, rr.number = f, next
	return nil
}

// Close ends the reader, also one that waits for more.
func (rr *ringReader) Close() error {
	rr.closeOnce.Do(func() { close(rr.closed) })
	rr.mu.Lock()
	defer rr.mu.Unlock()
	return rr.file.Close()
}

// ReadLog reads what is kept of the console of a machine that is no longer running,
// oldest first. dir is the machine's; a machine that never ran has an empty log.
func ReadLog(dir string) (io.ReadCloser, error) {
	var log logFiles
	for _, name := range []string{consoleLog + oldSuffix, consoleLog} {
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			log.Close()
			return nil, err
		}
		log.files = append(log.files, f)
	}
	return &log, nil
}

// logFiles reads files one after another.
type logFiles struct {
	files []*os.File
	at    int
}

func (l *logFiles) Read(b []byte) (int, error) {
	for l.at < len(l.files) {
		n, err := l.files[l.at].Read(b)
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		l.at++
	}
	return 0, io.EOF
}

func (l *logFiles) Close() error {
	var failed []error
	for _, f := range l.files {
		failed = append(failed, f.Close())
	}
	return errors.Join(failed...)
}
