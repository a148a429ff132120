package tree

import (
	"io"
	"os"
)

// ahead reads a large file while what was read before is being sent.
type ahead struct {
	chunks <-chan chunk
	idle   chan<- []byte
	lent   []byte // the buffer that next handed out
	err    error  // after it
}

// chunk is what one read of the file gave.
type chunk struct {
	data []byte
	err  error
}

// readAhead begins to read f. With direct it reads past the page cache where the
// filesystem can, for the reason that stream has. stop ends it; f must stay open until then.
func readAhead(f *os.File, direct bool) (r *ahead, stop func(), err error) {
	direct = direct && setDirect(f, true) == nil
	buffers, free, err := mapBuffers(direct)
	if err != nil {
		return nil, nil, err
	}
	chunks, idle, quit, ended := make(chan chunk, inFlight), make(chan []byte, inFlight), make(chan struct{}), make(chan struct{})
	for _, b := range buffers {
		idle <- b
	}
	go func() {
		defer close(ended)
		defer close(chunks)
		for {
			var b []byte
			select {
			case b = <-idle:
			case <-quit:
				return
			}
			n, err := f.Read(b)
			if direct && err == nil && n%directAlign != 0 { // the end of the file: what follows starts between two blocks
				direct = false
				err = setDirect(f, false)
			}
			chunks <- chunk{b[:n], err} // has room for every buffer
			if err != nil {
				return
			}
		}
	}()
	return &ahead{chunks: chunks, idle: idle}, func() {
		close(quit)
		<-ended
		free()
	}, nil
}

// next gives what follows in the file. It is valid until the next call.
func (a *ahead) next() ([]byte, error) {
	if a.err != nil {
		return nil, a.err
	}
	if a.lent != nil {
		a.idle <- a.lent[:cap(a.lent)]
		a.lent = nil
	}
	c, ok := <-a.chunks
	if !ok {
		return nil, io.ErrUnexpectedEOF
	}
	a.err = c.err
	if c.err == nil {
		a.lent = c.data
	}
	if len(c.data) == 0 {
		return nil, c.err
	}
	return c.data, nil
}
