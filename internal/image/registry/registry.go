// Package registry fetches container images from registries. It owns the talk with them
// (credentials, mirrors, retries, limits of time) and the cache of blobs, which lets an
// interrupted pull go on where it broke off. What the blobs mean is the package oci's.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/errs"
	"banger/internal/image/oci"
)

// Puller pulls images. Its fields are set before it is used; pulls may run side by side.
type Puller struct {
	Cache   string              // directory of blobs
	Mirrors map[string][]string // of a registry, by its host: hosts that are asked first
	Limits  Limits

	locks locks
}

// Limits bound how long a registry is waited for. Zero fields have the defaults.
type Limits struct {
	Answer time.Duration // for the head of an answer
	Stall  time.Duration // for the next bytes of it
	Pause  time.Duration // before the second try; each further one is twice as long
	Tries  int
}

func (l Limits) filled() Limits {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&l.Answer, 30*time.Second)
	set(&l.Stall, 30*time.Second)
	set(&l.Pause, time.Second)
	if l.Tries == 0 {
		l.Tries = 5
	}
	return l
}

// Credentials are those of one registry. They are not kept.
type Credentials = authn.AuthConfig

// ParseReference reads what a person calls an image in a registry: [HOST/]NAME[:TAG][@DIGEST],
// with the host and tag that Docker assumes.
func ParseReference(s string) (name.Reference, error) {
	ref, err := name.ParseReference(s)
	if err != nil || strings.Contains(ref.Context().RepositoryStr(), "..") {
		return nil, errs.New(errs.Invalid, "%q is no image of a registry", s).
			Try("write it as NAME:TAG or HOST/NAME:TAG, or with a digest: NAME@sha256:…")
	}
	return ref, nil
}

// ShortName is what an image is called here: as the reference says, without the host and the tag
// that it need not say, and without a digest.
func ShortName(ref name.Reference) string {
	repository := ref.Context().Name()
	for _, usual := range []string{name.DefaultRegistry + "/library/", name.DefaultRegistry + "/"} {
		repository = strings.TrimPrefix(repository, usual)
	}
	if tag, ok := ref.(name.Tag); ok {
		return repository + ":" + tag.TagStr()
	}
	return repository
}

// Pull fetches what is small of an image and begins to fetch its layers, which the source waits
// for as it is read. The caller closes that.
func (p *Puller) Pull(ctx context.Context, ref name.Reference, c oci.Choice, credentials *Credentials, progress oci.Progress) (*oci.Source, error) {
	limits := p.Limits.filled()
	var failed error
	for _, host := range append(p.mirrors(ref.Context()), ref.Context().RegistryStr()) {
		auth := authn.Anonymous
		if host == ref.Context().RegistryStr() && credentials != nil {
			auth = authn.FromConfig(*credentials)
		}
		r, err := connect(ctx, host, ref.Context().RepositoryStr(), auth, limits)
		if err == nil {
			var s *oci.Source
			if s, err = p.pull(ctx, r, ref.Identifier(), c, progress); err == nil {
				return s, nil
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		failed = explain(host, err)
	}
	return nil, failed
}

// mirrors are the hosts to ask before a repository's own. Docker's registry has two names, of
// which people know the one.
func (p *Puller) mirrors(r name.Repository) []string {
	m := p.Mirrors[r.RegistryStr()]
	if r.RegistryStr() == name.DefaultRegistry {
		m = append(m[:len(m):len(m)], p.Mirrors["docker.io"]...)
	}
	return m[:len(m):len(m)]
}

// repository is one of a registry.
type repository struct {
	host   string // of the registry
	base   string // URL
	client *http.Client
	limits Limits
}

func connect(ctx context.Context, host, path string, auth authn.Authenticator, l Limits) (*repository, error) {
	registry, err := name.NewRegistry(host)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%q is no host of a registry", host)
	}
	here := isLoopback(registry.RegistryStr())
	base := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer(l.Answer, here),
		TLSHandshakeTimeout:    l.Answer,
		ResponseHeaderTimeout:  l.Answer,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: 1 << 20,
		DisableCompression:     true, // what has a digest is wanted as it is
	}
	guarded := guard{RoundTripper: base, here: here}
	scope := registry.Repo(strings.Split(path, "/")...).Scope(transport.PullScope)
	var authed http.RoundTripper
	err = retry(ctx, l, func() error {
		limited, cancel := context.WithTimeout(ctx, 2*l.Answer)
		defer cancel()
		authed, err = transport.NewWithContext(limited, registry, auth, guarded, []string{scope})
		return err
	})
	if err != nil {
		return nil, err
	}
	scheme := "https"
	if here && registry.Scheme() == "http" {
		scheme = "http" // the transport puts https in its place if the registry speaks that
	}
	return &repository{host: host, base: scheme + "://" + registry.RegistryStr() + "/v2/" + path, client: &http.Client{Transport: authed}, limits: l}, nil
}

// get asks for something of the repository, from an offset on. The body ends with an error
// when it stalls.
func (r *repository) get(ctx context.Context, path string, from int64, accept ...string) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, "GET", r.base+path, nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	for _, a := range accept {
		req.Header.Add("Accept", a)
	}
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	resp, err := r.client.Do(req)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable); err != nil {
		resp.Body.Close()
		cancel(nil)
		return nil, &refusal{err: err, after: resp.Header.Get("Retry-After")}
	}
	body := &impatient{body: resp.Body, limit: r.limits.Stall, cancel: cancel}
	body.timer = time.AfterFunc(r.limits.Stall, func() { cancel(errStalled) })
	body.cause = func() error { return context.Cause(ctx) }
	resp.Body = body
	return resp, nil
}

var errStalled = errors.New("the registry sends nothing any more")

// impatient is a body that fails when nothing comes for a while.
type impatient struct {
	body   io.ReadCloser
	limit  time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
	cause  func() error
}

func (b *impatient) Read(p []byte) (int, error) {
	b.timer.Reset(b.limit)
	n, err := b.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(b.cause(), errStalled) {
		err = errStalled
	}
	return n, err
}

func (b *impatient) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}

// refusal is an answer that is none, with what the registry says of trying again.
type refusal struct {
	err   error
	after string
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// document fetches a manifest or an index: by tag, or by digest, which is then checked.
func (r *repository) document(ctx context.Context, path string) (b []byte, kind types.MediaType, err error) {
	err = retry(ctx, r.limits, func() error {
		resp, err := r.get(ctx, path, 0, string(types.OCIImageIndex), string(types.OCIManifestSchema1), string(types.DockerManifestList), string(types.DockerManifestSchema2))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		kind = types.MediaType(resp.Header.Get("Content-Type"))
		b, err = io.ReadAll(io.LimitReader(resp.Body, oci.MaxDocument+1))
		return err
	})
	if err == nil && len(b) > oci.MaxDocument {
		err = errs.New(errs.Invalid, "its manifest is larger than %d MiB", oci.MaxDocument>>20)
	}
	return b, kind, err
}

// retry tries until it works, it can't, or enough has been tried.
func retry(ctx context.Context, l Limits, try func() error) error {
	pause := l.Pause
	for n := 1; ; n++ {
		err := try()
		wait, again := worthwhile(err)
		if err == nil || !again || n >= l.Tries || ctx.Err() != nil {
			return err
		}
		timer := time.NewTimer(max(pause, min(wait, 30*l.Pause)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		pause *= 2
	}
}

// worthwhile tells whether to try again after an error, and when if the registry said so.
func worthwhile(err error) (wait time.Duration, again bool) {
	if _, ok := errors.AsType[*errs.Error](err); ok {
		return 0, false
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok { // of a file of this host's: a full disk, say
		return 0, false
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		wait, _ = time.ParseDuration(r.after + "s")
	}
	if e, ok := errors.AsType[*transport.Error](err); ok {
		return wait, e.StatusCode == http.StatusTooManyRequests || e.StatusCode >= 500 || e.StatusCode == http.StatusRequestTimeout
	}
	return wait, true
}

// explain puts what a registry did into words.
func explain(host string, err error) error {
	if _, ok := errors.AsType[*errs.Error](err); ok {
		return err
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok { // it is not the registry's doing
		return err
	}
	if e, ok := errors.AsType[*transport.Error](err); ok {
		switch e.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return errs.New(errs.Unavailable, "%s refuses it to this user, or has no such image", host).
				Try("log in, which writes the file that banger reads: docker login %s, podman login or skopeo login", host)
		case http.StatusNotFound:
			return errs.New(errs.NotFound, "%s has no such image", host).Try("check the name and the tag")
		case http.StatusTooManyRequests:
			return errs.New(errs.Unavailable, "%s has been asked too often", host).Try("try again later; what has come so far is kept")
		}
		err = fmt.Errorf("it answers with status %d", e.StatusCode)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // its text repeats the method and the address
	}
	return errs.New(errs.Unavailable, "%s can't be reached, or is out of order", host).Because(err).Try("try again later; what has come so far is kept")
}

// locks are held by digest: two pulls want the same layer once.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func (l *locks) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		busy, ok := l.held[key]
		if !ok {
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			free := make(chan struct{})
			l.held[key] = free
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.held, key)
				close(free)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
