package tree

import (
	"io"
	"os"
)

// ahead reads a large file while what was read before is being sent.
type ahead struct {
	chunks <-chan chunk
	idle   chan<- []byte
	rest   []byte // of the buffer that is being handed out
	buffer []byte
	err    error // after rest
}

// chunk is what one read of the file gave.
type chunk struct {
	data []byte
	err  error
}

// readAhead returns a reader of f. With direct it reads past the page cache where the
// filesystem can, for the reason that stream has. stop ends it; f must stay open until then.
func readAhead(f *os.File, direct bool) (r *ahead, stop func(), err error) {
	buffers, free, err := mapBuffers()
	if err != nil {
		return nil, nil, err
	}
	direct = direct && setDirect(f, true) == nil
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

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.buffer != nil {
			a.idle <- a.buffer
			a.buffer = nil
		}
		c, ok := <-a.chunks
		if !ok {
			return 0, io.ErrUnexpectedEOF
		}
		a.rest, a.err = c.data, c.err
		if c.err == nil {
			a.buffer = c.data[:cap(c.data)]
		}
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}
