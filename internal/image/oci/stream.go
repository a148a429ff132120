package oci

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"

	"banger/internal/errs"
)

const (
	// maxWindow bounds the memory that a compressed stream may ask for. It is what zstd and
	// xz need for their highest levels.
	maxWindow = 64 << 20

	// A stream that unfolds to more than bombBytes and to more than bombRatio times its size
	// is one that is meant to.
	bombBytes = 1 << 30
	bombRatio = 250
)

// decompress gives what r unfolds to, whatever it is compressed with, if at all.
func decompress(r io.Reader) (io.ReadCloser, error) {
	in := &counted{r: r}
	peek := bufio.NewReaderSize(in, 64<<10)
	magic, err := peek.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var out io.Reader
	end := func() {}
	switch {
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		out, err = gzip.NewReader(peek)
	case bytes.HasPrefix(magic, []byte("\x28\xb5\x2f\xfd")):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(peek, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow)); err == nil {
			out, end = d, d.Close
		}
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		out, err = xz.NewReader(peek, maxWindow)
	case bytes.HasPrefix(magic, []byte("BZh")):
		out = bzip2.NewReader(peek)
	default:
		return struct {
			io.Reader
			io.Closer
		}{peek, io.NopCloser(nil)}, nil
	}
	if err != nil {
		return nil, damaged(err)
	}
	return &unfolded{out: out, in: in, end: end}, nil
}

type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// unfolded is a decompressed stream that refuses to be a bomb.
type unfolded struct {
	out io.Reader
	in  *counted
	n   int64
	end func()
}

func (u *unfolded) Read(p []byte) (int, error) {
	n, err := u.out.Read(p)
	if u.n += int64(n); u.n > bombBytes && u.n/bombRatio > u.in.n {
		return n, errs.New(errs.Invalid, "it unfolds to more than %d times its size", bombRatio).
			Try("if that is what you want, unpack it and import the uncompressed archive")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = damaged(err)
	}
	return n, err
}

func (u *unfolded) Close() error {
	u.end()
	return nil
}

// damaged tells that a compressed stream is; what the reading itself failed with stays.
func damaged(err error) error {
	if _, ok := errors.AsType[*errs.Error](err); ok {
		return err
	}
	if _, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); ok {
		return err
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, xz.ErrMemlimit) {
		return errs.New(errs.Invalid, "unpacking it takes more memory than %d MiB", maxWindow>>20)
	}
	return errs.New(errs.Invalid, "its compressed data is damaged").Because(err)
}

// verified passes on a stream that must have a certain length and digest: at its end, it
// fails if it has not.
type verified struct {
	r    io.Reader
	what string
	left int64 // -1: any length
	sum  hash.Hash
	want string // SHA-256 in hexadecimal
}

func verify(r io.Reader, what string, size int64, want string) *verified {
	return &verified{r: r, what: what, left: size, sum: sha256.New(), want: want}
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.sum.Write(p[:n])
	if v.left >= 0 {
		if int64(n) > v.left {
			return 0, errs.New(errs.Invalid, "%s is larger than is said of it", v.what)
		}
		v.left -= int64(n)
	}
	if errors.Is(err, io.EOF) {
		if v.left > 0 {
			return n, errs.New(errs.Invalid, "%s ends %d bytes too early", v.what, v.left)
		}
		if got := hex.EncodeToString(v.sum.Sum(nil)); got != v.want {
			return n, errs.New(errs.Invalid, "%s is not what it should be: its SHA-256 is %s, not %s", v.what, got, v.want)
		}
	}
	return n, err
}

// ahead reads r in a goroutine of its own, so that what it costs is borne by another CPU.
type ahead struct {
	filled, empty chan []byte
	rest, lent    []byte
	err           error // of r; read once filled is closed
	quit          chan struct{}
	ended         chan struct{}
}

func readAhead(r io.Reader) *ahead {
	const buffers, bufferBytes = 4, 512 << 10
	a := &ahead{filled: make(chan []byte, buffers), empty: make(chan []byte, buffers), quit: make(chan struct{}), ended: make(chan struct{})}
	for range buffers {
		a.empty <- make([]byte, bufferBytes)
	}
	go func() {
		defer close(a.ended)
		defer close(a.filled)
		for {
			var b []byte
			select {
			case b = <-a.empty:
			case <-a.quit:
				return
			}
			n, err := fill(r, b)
			if n > 0 {
				a.filled <- b[:n]
			}
			if err != nil {
				a.err = err
				return
			}
		}
	}()
	return a
}

func (a *ahead) Read(p []byte) (int, error) {
	if len(a.rest) == 0 {
		if a.lent != nil {
			a.empty <- a.lent[:cap(a.lent)]
			a.lent = nil
		}
		b, ok := <-a.filled
		if !ok {
			return 0, a.err
		}
		a.rest, a.lent = b, b
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// fill reads until p is full. Unlike io.ReadFull it does not give an end in the middle the name
// that readers have for an end that comes too early.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var some int
		some, err = r.Read(p[n:])
		n += some
	}
	return n, err
}

// Close ends the reading; r can then be closed.
func (a *ahead) Close() error {
	close(a.quit)
	<-a.ended
	return nil
}
