package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/renameio/v2"

	"banger/internal/errs"
	"banger/internal/image/oci"
	"banger/internal/image/shelf"
)

// fetched is a layout whose blobs come from a registry as they are asked for, by way of the
// cache.
type fetched struct {
	ctx    context.Context // of the pull
	puller *Puller
	remote *repository
	index  []byte
	order  []string            // the layers' digests, the lowest first
	layers map[string]*arrival // by digest
	report oci.Progress
}

// arrival is a layer on its way.
type arrival struct {
	size int64
	done chan struct{} // closed once it is in the cache, or err is set
	err  error
}

// pull resolves an image and begins to fetch its layers.
func (p *Puller) pull(ctx context.Context, r *repository, identifier string, c oci.Choice, progress oci.Progress) (*oci.Source, error) {
	if err := os.MkdirAll(filepath.Join(p.Cache, "sha256"), 0o700); err != nil {
		return nil, err
	}
	progress("asking the registry", 0, 0)
	b, kind, err := r.document(ctx, "/manifests/"+identifier)
	if err != nil {
		return nil, err
	}
	top := v1.Descriptor{MediaType: mediaType(b, kind), Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: sumOf(b)}}
	if strings.HasPrefix(identifier, "sha256:") && identifier != top.Digest.String() {
		return nil, errs.New(errs.Invalid, "the registry gave another image than %s: %s", identifier, top.Digest)
	}
	if err := p.keep(top.Digest.Hex, b); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	f := &fetched{ctx: ctx, puller: p, remote: r, layers: map[string]*arrival{}, report: progress}
	f.index, err = json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{top}})
	if err != nil {
		cancel()
		return nil, err
	}
	s, err := oci.OpenFiles(f, c)
	if err != nil {
		cancel()
		return nil, err
	}
	for _, l := range s.Layers {
		if _, twice := f.layers[l.Digest]; !twice {
			f.layers[l.Digest] = &arrival{size: l.Size, done: make(chan struct{})}
			f.order = append(f.order, l.Digest)
		}
	}
	done := f.prefetch()
	s.OnClose(func() error {
		cancel()
		<-done
		return p.trim()
	})
	return s, nil
}

// mediaType is what a document is: it says so itself, or else the registry does.
func mediaType(b []byte, told types.MediaType) types.MediaType {
	var d struct {
		MediaType types.MediaType `json:"mediaType"`
	}
	if json.Unmarshal(b, &d) == nil && d.MediaType != "" {
		return d.MediaType
	}
	return told
}

const sideBySide = 3 // layers that are fetched at once

// prefetch fetches the layers, the lowest first, while those that have come are being read.
// Errors show when they are.
func (f *fetched) prefetch() <-chan struct{} {
	done, slots := make(chan struct{}), make(chan struct{}, sideBySide)
	go func() {
		defer close(done)
		for _, digest := range f.order {
			slots <- struct{}{}
			go func() {
				l := f.layers[digest]
				defer func() {
					close(l.done)
					<-slots
				}()
				stop := f.watch(digest)
				l.err = f.puller.blob(f.ctx, f.remote, digest, l.size)
				stop()
				if l.err == nil {
					f.report(f.stage(digest), l.size, l.size)
				} else if f.ctx.Err() == nil {
					l.err = explain(f.remote.host, l.err)
				}
			}()
		}
		for range sideBySide {
			slots <- struct{}{}
		}
	}()
	return done
}

// Open implements oci.Files.
func (f *fetched) Open(name string) (io.ReadCloser, int64, error) {
	if name == "index.json" {
		return io.NopCloser(bytes.NewReader(f.index)), int64(len(f.index)), nil
	}
	digest, ok := strings.CutPrefix(name, "blobs/sha256/")
	if !ok || len(digest) != 2*sha256.Size {
		return nil, 0, fs.ErrNotExist
	}
	if l, layer := f.layers[digest]; layer {
		if <-l.done; l.err != nil {
			return nil, 0, l.err
		}
	} else if err := f.small(digest); err != nil {
		return nil, 0, err
	}
	file, err := os.Open(f.puller.path(digest))
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

func (f *fetched) stage(digest string) string {
	return fmt.Sprintf("pulling layer %d of %d", slices.Index(f.order, digest)+1, len(f.order))
}

// watch tells how far a layer is, whichever pull fetches it, until it is stopped.
func (f *fetched) watch(digest string) (stop func()) {
	const often = 200 * time.Millisecond
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(often)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			if info, err := os.Stat(f.puller.path(digest) + ".part"); err == nil {
				f.report(f.stage(digest), info.Size(), f.layers[digest].size)
			}
		}
	}()
	return func() {
		close(quit)
		<-ended
	}
}

// small fetches a manifest, an index or a configuration.
func (f *fetched) small(digest string) error {
	if f.puller.has(digest) {
		return nil
	}
	b, _, err := f.remote.document(f.ctx, "/manifests/sha256:"+digest)
	if e, ok := errors.AsType[*transport.Error](err); ok && e.StatusCode < 500 && e.StatusCode != http.StatusTooManyRequests { // a configuration is a blob
		b, _, err = f.remote.document(f.ctx, "/blobs/sha256:"+digest)
	}
	if err != nil {
		return err
	}
	if got := sumOf(b); got != digest {
		return wrongDigest(digest, got)
	}
	return f.puller.keep(digest, b)
}

func wrongDigest(want, got string) error {
	return errs.New(errs.Invalid, "the registry gave something else than it was asked for: its SHA-256 is %s, not %s", got, want).
		Try("try again; if it stays so, the registry is broken, or someone is in between")
}

func (p *Puller) path(digest string) string { return filepath.Join(p.Cache, "sha256", digest) }

// has tells whether a blob is in the cache, and keeps it there for a while. One that is damaged is
// none.
func (p *Puller) has(digest string) bool {
	now := time.Now()
	if os.Chtimes(p.path(digest), now, now) != nil {
		return false
	}
	f, err := os.Open(p.path(digest))
	if err != nil {
		return false
	}
	defer f.Close()
	sum, err := sumFile(f)
	return err == nil && sum == digest
}

// Forget removes what pulls have kept, and returns its bytes; dry: it only tells. Otherwise the
// caller makes sure that no pull is at work.
func (p *Puller) Forget(dry bool) (sum int64, err error) {
	entries, err := os.ReadDir(filepath.Join(p.Cache, "sha256"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for _, e := range entries {
		bytes, err := shelf.Allocated(p.path(e.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a pull may trim meanwhile
			return 0, err
		}
		sum += bytes
	}
	if !dry && err == nil {
		err = os.RemoveAll(p.Cache)
	}
	return sum, err
}

func (p *Puller) keep(digest string, b []byte) error {
	return renameio.WriteFile(p.path(digest), b, 0o600)
}

// blob fetches a layer into the cache, going on where an earlier pull broke off.
func (p *Puller) blob(ctx context.Context, r *repository, digest string, size int64) error {
	unlock, err := p.locks.lock(ctx, digest)
	if err != nil {
		return err
	}
	defer unlock()
	if p.has(digest) {
		return nil
	}
	part, err := os.OpenFile(p.path(digest)+".part", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer part.Close()
	fresh := false
	for {
		if err := retry(ctx, r.limits, func() error { return r.resume(ctx, part, digest, size) }); err != nil {
			return err
		}
		got, err := sumFile(part)
		if err == nil && got == digest {
			if err := part.Sync(); err != nil { // part of it may have come at another time
				return err
			}
			return os.Rename(part.Name(), p.path(digest))
		}
		if err = errors.Join(err, part.Truncate(0)); err != nil {
			return err
		}
		if fresh {
			return wrongDigest(digest, got)
		}
		fresh = true // what an earlier pull left may have been wrong: once more, from the start
	}
}

// resume fetches what part lacks of a blob.
func (r *repository) resume(ctx context.Context, part *os.File, digest string, size int64) error {
	have, err := part.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if have == size && size > 0 {
		return nil
	}
	if have > size {
		have = 0
	}
	resp, err := r.get(ctx, "/blobs/sha256:"+digest, have)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent || !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", have)) {
		if resp.StatusCode != http.StatusOK {
			return errors.Join(fmt.Errorf("the registry can't go on with a blob at byte %d", have), part.Truncate(0))
		}
		have = 0 // all of it comes again
	}
	if err := part.Truncate(have); err != nil {
		return err
	}
	if _, err := part.Seek(have, io.SeekStart); err != nil {
		return err
	}
	n, err := io.Copy(part, io.LimitReader(resp.Body, size-have+1))
	switch {
	case err != nil:
		return err
	case have+n > size:
		return errors.Join(errs.New(errs.Invalid, "the registry gives more of a layer than its manifest says"), part.Truncate(0))
	case have+n < size:
		return io.ErrUnexpectedEOF
	}
	return nil
}

func sumFile(f *os.File) (string, error) {
	h := sha256.New()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	_, err := io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

func sumOf(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

const (
	maxCache = 4 << 30
	// inUse is how long a blob stays however large the cache: a pull may be about to read it.
	inUse = time.Hour
)

// trim removes the blobs that have not been used for longest, until the cache is small enough.
func (p *Puller) trim() error {
	dir := filepath.Join(p.Cache, "sha256")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var infos []fs.FileInfo
	var total int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			infos = append(infos, info)
			total += info.Size()
		}
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, info := range infos {
		if total <= maxCache || time.Since(info.ModTime()) < inUse {
			break
		}
		if err := os.Remove(filepath.Join(dir, info.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		total -= info.Size()
	}
	return nil
}
