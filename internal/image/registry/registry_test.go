package registry

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/image/oci"
)

// world is a registry on the loopback interface with an image of two layers in it, app:1.
type world struct {
	*httptest.Server
	image v1.Image
	large v1.Hash // the second layer, of 3 MiB
	inner http.Handler

	mu     sync.Mutex
	asked  []string // paths, with their ranges
	before func(w http.ResponseWriter, r *http.Request) (answered bool)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{inner: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		if r.Method == "GET" {
			w.asked = append(w.asked, r.URL.Path+r.Header.Get("Range"))
		}
		before := w.before
		w.mu.Unlock()
		if before == nil || !before(rw, r) {
			w.inner.ServeHTTP(rw, r)
		}
	}))
	t.Cleanup(w.Close)
	content := make([]byte, 3<<20)
	rand.Read(content)
	small, large := layer(t, "etc/motd", []byte("hello\n")), layer(t, "data", content)
	image, err := mutate.AppendLayers(empty.Image, small, large)
	if err == nil {
		image, err = mutate.ConfigFile(image, &v1.ConfigFile{Architecture: "amd64", OS: "linux", Config: v1.Config{Entrypoint: []string{"/app"}}, RootFS: rootfs(t, image)})
	}
	if err != nil {
		t.Fatal(err)
	}
	w.image = image
	if w.large, err = large.Digest(); err != nil {
		t.Fatal(err)
	}
	w.push(t, "app:1", image)
	return w
}

func rootfs(t *testing.T, i v1.Image) v1.RootFS {
	t.Helper()
	c, err := i.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c.RootFS
}

func layer(t *testing.T, name string, content []byte) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return static.NewLayer(b.Bytes(), types.OCIUncompressedLayer)
}

func (w *world) host() string { return strings.TrimPrefix(w.URL, "http://") }

func (w *world) push(t *testing.T, tag string, i v1.Image) {
	t.Helper()
	ref, err := name.ParseReference(w.host() + "/" + tag)
	if err == nil {
		err = remote.Write(ref, i)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fault has answers given by f first; f says whether it gave one.
func (w *world) fault(f func(http.ResponseWriter, *http.Request) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before, w.asked = f, nil
}

func (w *world) count(what string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.asked {
		if strings.Contains(a, what) {
			n++
		}
	}
	return n
}

func newPuller(t *testing.T) *Puller {
	t.Helper()
	return &Puller{Cache: t.TempDir(), Limits: Limits{Answer: 300 * time.Millisecond, Stall: 300 * time.Millisecond, Pause: 5 * time.Millisecond, Tries: 3}}
}

// pulled pulls an image and reads all its layers. It returns what is in them, by length.
func pulled(t *testing.T, p *Puller, reference string, credentials *Credentials) (string, *oci.Config, error) {
	t.Helper()
	ref, err := ParseReference(reference)
	if err != nil {
		return "", nil, err
	}
	s, err := p.Pull(t.Context(), ref, oci.Choice{}, credentials, func(string, int64, int64) {})
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	got := ""
	for _, l := range s.Layers {
		r, err := l.Open(t.Context())
		if err != nil {
			return "", nil, err
		}
		n, err := io.Copy(io.Discard, r)
		r.Close()
		if err != nil {
			return "", nil, err
		}
		got += fmt.Sprintln(n)
	}
	return got, s.Config, nil
}

const whole = "2048\n3147264\n" // the layers' sizes

func TestPull(t *testing.T) {
	w, p := newWorld(t), newPuller(t)
	got, c, err := pulled(t, p, w.host()+"/app:1", nil)
	if err != nil || got != whole || c == nil || c.Entrypoint[0] != "/app" {
		t.Fatalf("got %q, %+v, %v", got, c, err)
	}
	w.fault(nil)
	digest, err := w.image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err = pulled(t, p, w.host()+"/app@"+digest.String(), nil); err != nil || got != whole {
		t.Errorf("by digest: %q, %v", got, err)
	}
	if n := w.count("/blobs/"); n != 0 {
		t.Errorf("what the cache has was fetched %d times: %q", n, w.asked)
	}
	other := digest
	other.Hex = strings.Repeat("0", 64)
	if _, _, err = pulled(t, p, w.host()+"/app@"+other.String(), nil); errs.KindOf(err) != errs.NotFound {
		t.Errorf("another digest: %v", err)
	}
}

func TestPullsShareTheirLayers(t *testing.T) {
	w, p := newWorld(t), newPuller(t)
	w.fault(nil)
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if got, _, err := pulled(t, p, w.host()+"/app:1", nil); err != nil || got != whole {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	all.Wait()
	if n := w.count(w.large.Hex); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
}

// Layers that come side by side are told of side by side, and each to its end.
func TestProgressOfEachLayer(t *testing.T) {
	w, p := newWorld(t), newPuller(t)
	p.Limits.Stall = time.Minute
	both := make(chan struct{})
	w.fault(func(rw http.ResponseWriter, r *http.Request) bool {
		rec := httptest.NewRecorder()
		if r.Method != "GET" || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		w.inner.ServeHTTP(rec, r)
		b := rec.Body.Bytes()
		rw.Header().Set("Content-Length", fmt.Sprint(len(b)))
		rw.Write(b[:len(b)/2])
		http.NewResponseController(rw).Flush()
		if bytes.Contains(b, []byte("rootfs")) { // the configuration
			rw.Write(b[len(b)/2:])
			return true
		}
		<-both
		rw.Write(b[len(b)/2:])
		return true
	})
	ref, err := ParseReference(w.host() + "/app:1")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	latest, halfway := map[string]string{}, map[string]bool{}
	s, err := p.Pull(t.Context(), ref, oci.Choice{}, nil, func(stage string, done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		latest[stage] = fmt.Sprintf("%d of %d", done, total)
		if done == total/2 && total > 0 && !halfway[stage] {
			if halfway[stage] = true; len(halfway) == 2 {
				close(both)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range s.Layers {
		r, err := l.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	delete(latest, "asking the registry")
	if want := (map[string]string{"pulling layer 1 of 2": "2048 of 2048", "pulling layer 2 of 2": "3147264 of 3147264"}); !maps.Equal(latest, want) {
		t.Errorf("in the end there was told %v", latest)
	}
}

// status answers requests of paths with that in them, n times.
func (w *world) status(path string, n int, code int) {
	w.fault(func(rw http.ResponseWriter, r *http.Request) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		if r.Method != "GET" || !strings.Contains(r.URL.Path, path) || n == 0 {
			return false
		}
		n--
		rw.WriteHeader(code)
		return true
	})
}

func TestAnswersThatAreNone(t *testing.T) {
	for _, tc := range []struct {
		path  string
		times int // -1: always
		code  int
		kind  errs.Kind // of the error; "" if it works in the end
		says  string
	}{
		{"/manifests/", -1, 401, errs.Unavailable, "refuses it to this user"},
		{"/manifests/", -1, 403, errs.Unavailable, "refuses it to this user"},
		{"/manifests/", -1, 404, errs.NotFound, "has no such image"},
		{"/manifests/", -1, 429, errs.Unavailable, "asked too often"},
		{"/manifests/", -1, 500, errs.Unavailable, "status 500"},
		{"/manifests/", 2, 429, "", ""},
		{"/manifests/", 2, 503, "", ""},
		{"/v2/", 1, 500, "", ""},
		{"/blobs/", 2, 502, "", ""},
	} {
		t.Run(fmt.Sprint(tc.path, tc.times, tc.code), func(t *testing.T) {
			w, p := newWorld(t), newPuller(t)
			w.status(tc.path, tc.times, tc.code)
			got, _, err := pulled(t, p, w.host()+"/app:1", nil)
			if tc.kind == "" {
				if err != nil || got != whole {
					t.Errorf("got %q, %v", got, err)
				}
				return
			}
			if errs.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.says) || errs.HintOf(err) == "" {
				t.Errorf("error is %v (%s, %q)", err, errs.KindOf(err), errs.HintOf(err))
			}
		})
	}
}

func TestNoTwoTriesForWhatThisHostCannotDo(t *testing.T) {
	tries := 0
	full := &fs.PathError{Op: "write", Path: "layer.part", Err: unix.ENOSPC}
	err := retry(t.Context(), Limits{}.filled(), func() error { tries++; return full })
	if tries != 1 || !errors.Is(explain("registry", err), unix.ENOSPC) {
		t.Errorf("%d tries, then %v", tries, err)
	}
}

func TestALayerThatIsRefusedIsTheRegistrysDoing(t *testing.T) {
	w, p := newWorld(t), newPuller(t)
	w.status(w.large.Hex, -1, 500)
	_, _, err := pulled(t, p, w.host()+"/app:1", nil)
	if errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), w.host()+" can't be reached, or is out of order: it answers with status 500") {
		t.Errorf("error is %v (%s, %q)", err, errs.KindOf(err), errs.HintOf(err))
	}
}

func TestCredentials(t *testing.T) {
	w, p := newWorld(t), newPuller(t)
	w.fault(func(rw http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user == "me" && password == "secret" {
			return false
		}
		rw.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		rw.WriteHeader(http.StatusUnauthorized)
		return true
	})
	if _, _, err := pulled(t, p, w.host()+"/app:1", &Credentials{Username: "me", Password: "wrong"}); err == nil || strings.Contains(err.Error(), "wrong") {
		t.Errorf("error is %v", err)
	}
	if got, _, err := pulled(t, p, w.host()+"/app:1", &Credentials{Username: "me", Password: "secret"}); err != nil || got != whole {
		t.Errorf("got %q, %v", got, err)
	}
}

// bytes returns the large layer.
func (w *world) bytes(t *testing.T) []byte {
	t.Helper()
	l, err := w.image.LayerByDigest(w.large)
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStallsEnd(t *testing.T) {
	for name, stall := range map[string]func(w *world, rw http.ResponseWriter, r *http.Request) bool{
		"before the answer": func(w *world, rw http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				<-r.Context().Done()
			}
			return false
		},
		"in a layer": func(w *world, rw http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, w.large.Hex) {
				return false
			}
			rw.Header().Set("Content-Length", "3147264")
			rw.Write(make([]byte, 1000))
			http.NewResponseController(rw).Flush()
			<-r.Context().Done()
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, p := newWorld(t), newPuller(t)
			w.fault(func(rw http.ResponseWriter, r *http.Request) bool { return stall(w, rw, r) })
			if got, _, err := pulled(t, p, w.host()+"/app:1", nil); err == nil {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestWrongDigestIsRefused(t *testing.T) {
	w, p := newWorld(t), newPuller(t)
	w.fault(func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, w.large.Hex) {
			return false
		}
		rw.Write(make([]byte, 3147264))
		return true
	})
	_, _, err := pulled(t, p, w.host()+"/app:1", nil)
	if err == nil || !strings.Contains(err.Error(), "something else than it was asked for") {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.Cache, "sha256", w.large.Hex)); err == nil {
		t.Error("what is wrong was kept")
	}
	w.fault(nil)
	if got, _, err := pulled(t, p, w.host()+"/app:1", nil); err != nil || got != whole {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}

// A mirror that lacks something is passed over; one that has it is the only one asked.
func TestMirrors(t *testing.T) {
	mirror, origin, p := newWorld(t), newWorld(t), newPuller(t)
	p.Mirrors = map[string][]string{origin.host(): {mirror.host()}}
	origin.push(t, "app:1", mirror.image)
	mirror.fault(nil)
	origin.fault(nil)
	if got, _, err := pulled(t, p, origin.host()+"/app:1", nil); err != nil || got != whole {
		t.Errorf("got %q, %v", got, err)
	}
	if len(origin.asked) > 0 {
		t.Errorf("the registry itself was asked %q", origin.asked)
	}
	mirror.status("/v2/", -1, 500)
	p.Cache = t.TempDir()
	if got, _, err := pulled(t, p, origin.host()+"/app:1", nil); err != nil || got != whole {
		t.Errorf("without the mirror: %q, %v", got, err)
	}
}

func TestParseReference(t *testing.T) {
	for _, bad := range []string{"", "UPPER", "a@sha256:12", "a:b:c", "http://x/y", "a/../b"} {
		if _, err := ParseReference(bad); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
