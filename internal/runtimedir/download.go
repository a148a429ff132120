package runtimedir

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Fetcher opens what is at an address: https, or file for what lies on this host.
type Fetcher struct {
	Client *http.Client
	// Idle is how long nothing may come before a connection counts as broken.
	Idle time.Duration
	// Retry is the wait before a broken connection is taken up again where it broke.
	Retry time.Duration
}

const (
	idleLimit  = 30 * time.Second
	retryWait  = time.Second
	maxRetries = 4 // in a row, without a byte in between
	dialLimit  = 10 * time.Second
	maxHops    = 5 // of redirections
)

// NewFetcher returns a Fetcher for the network as it is.
func NewFetcher() *Fetcher {
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialLimit}).DialContext,
		TLSHandshakeTimeout:   dialLimit,
		ResponseHeaderTimeout: idleLimit,
		DisableCompression:    true, // sizes and ranges are those of the file
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
		ReadBufferSize:        256 << 10,
	}
	return &Fetcher{Client: &http.Client{Transport: transport, CheckRedirect: checkRedirect}, Idle: idleLimit, Retry: retryWait}
}

// checkRedirect follows servers only to where eavesdroppers can't change what comes.
func checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case req.URL.Scheme != "https":
		return fmt.Errorf("it leads on to %s, which is not https", req.URL.Redacted())
	case len(via) > maxHops:
		return errors.New("it leads on and on")
	}
	return nil
}

// errFinal wraps an error that trying again would not mend.
type errFinal struct{ error }

func (e errFinal) Unwrap() error { return e.error }

// source is a file at an address, from some offset on.
type source struct {
	io.ReadCloser
	total int64 // bytes of the whole file, or -1 if that is unknown
}

// open opens the file at address from offset on.
func (f *Fetcher) open(ctx context.Context, address string, offset int64) (source, error) {
	u, err := url.Parse(address)
	if err != nil {
		return source{}, errFinal{err}
	}
	switch {
	case u.Scheme == "file" && (u.Host == "" || u.Host == "localhost"):
		return openFile(u.Path, offset)
	case u.Scheme == "https" && u.Host != "":
		return f.get(ctx, u, offset)
	}
	return source{}, errFinal{fmt.Errorf("%q is neither an https nor a file address", address)}
}

func openFile(path string, offset int64) (source, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return source{}, errFinal{err}
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return source{}, errFinal{err}
	}
	return source{f, info.Size()}, nil
}

// get asks a server for the file from offset on.
func (f *Fetcher) get(ctx context.Context, u *url.URL, offset int64) (source, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		cancel(nil)
		return source{}, errFinal{err}
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := f.Client.Do(req)
	if err != nil {
		cancel(nil)
		return source{}, err
	}
	body := &timedBody{body: resp.Body, idle: f.Idle, cancel: cancel}
	body.timer = time.AfterFunc(f.Idle, func() { cancel(fmt.Errorf("nothing came for %v", f.Idle)) })
	body.ctx = ctx
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && offset > 0 {
		// There is no more than came before, or less: its checksum tells.
		body.Close()
		return source{io.NopCloser(strings.NewReader("")), -1}, nil
	}
	total, err := f.position(resp, body, offset)
	if err != nil {
		body.Close()
		return source{}, err
	}
	return source{body, total}, nil
}

// position makes sure that the answer's body begins at offset, and returns the file's size.
func (f *Fetcher) position(resp *http.Response, body io.Reader, offset int64) (total int64, err error) {
	switch {
	case resp.StatusCode == http.StatusPartialContent && offset > 0:
		span, size, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "/")
		if !ok || !strings.HasPrefix(span, fmt.Sprintf("%d-", offset)) {
			return 0, errFinal{fmt.Errorf("asked to go on at byte %d, it answers with %q", offset, resp.Header.Get("Content-Range"))}
		}
		if total, err = strconv.ParseInt(size, 10, 64); err != nil {
			return -1, nil
		}
		return total, nil
	case resp.StatusCode == http.StatusOK: // from the beginning, also where another offset was asked for
		if _, err := io.CopyN(io.Discard, body, offset); err != nil {
			return 0, err
		}
		return resp.ContentLength, nil
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return 0, fmt.Errorf("it answers %s", resp.Status)
	}
	return 0, errFinal{fmt.Errorf("it answers %s", resp.Status)}
}

// timedBody is an answer's body that breaks when nothing comes for too long.
type timedBody struct {
	body   io.ReadCloser
	idle   time.Duration
	timer  *time.Timer
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	b.timer.Reset(b.idle)
	if err != nil && err != io.EOF && b.ctx.Err() != nil {
		err = context.Cause(b.ctx)
	}
	return n, err
}

func (b *timedBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}

// stream reads a whole file from some offset on, over as many connections as it takes.
type stream struct {
	ctx     context.Context
	fetcher *Fetcher
	address string
	at      int64 // bytes of the file read so far
	total   int64 // of the file, or -1
	limit   int64 // bytes that the file may have
	body    io.ReadCloser
	broken  int // connections in a row that brought nothing
}

func (s *stream) Read(p []byte) (int, error) {
	for {
		if s.body == nil {
			if err := s.connect(); err != nil {
				return 0, err
			}
		}
		n, err := s.body.Read(p)
		s.at += int64(n)
		if n > 0 {
			s.broken = 0
		}
		if s.at > s.limit {
			return 0, errFinal{fmt.Errorf("it has more than %d bytes", s.limit)}
		}
		if err == nil || n > 0 {
			return n, nil // an error comes again
		}
		if err == io.EOF && (s.total < 0 || s.at == s.total) {
			return 0, io.EOF
		}
		if err == io.EOF {
			err = fmt.Errorf("it ended after %d of %d bytes", s.at, s.total)
		}
		if err := s.interrupted(err); err != nil {
			return 0, err
		}
	}
}

func (s *stream) connect() error {
	for {
		if s.total >= 0 && s.at == s.total { // what is left of an earlier download is all of it
			s.body = io.NopCloser(strings.NewReader(""))
			return nil
		}
		src, err := s.fetcher.open(s.ctx, s.address, s.at)
		if err == nil && src.total >= 0 && s.total >= 0 && src.total != s.total {
			src.Close()
			return errFinal{fmt.Errorf("it has %d bytes, and must have %d", src.total, s.total)}
		}
		if err == nil {
			s.body = src
			if s.total < 0 {
				s.total = src.total
			}
			return nil
		}
		if err := s.interrupted(err); err != nil {
			return err
		}
	}
}

// interrupted waits before the next try. It returns err if there is to be none.
func (s *stream) interrupted(err error) error {
	s.Close()
	s.broken++
	if _, final := errors.AsType[errFinal](err); final || s.broken > maxRetries {
		return err
	}
	select {
	case <-time.After(s.fetcher.Retry):
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

func (s *stream) Close() error {
	if s.body == nil {
		return nil
	}
	err := s.body.Close()
	s.body = nil
	return err
}

// small reads a file of at most limit bytes.
func (f *Fetcher) small(ctx context.Context, address string, limit int64) ([]byte, error) {
	s := &stream{ctx: ctx, fetcher: f, address: address, total: -1, limit: limit}
	defer s.Close()
	return io.ReadAll(s)
}
