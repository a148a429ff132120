package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// shop is a registry on the loopback interface that has the image app:1 of two layers.
type shop struct {
	host    string
	content []byte // of the file data, in the second layer
	layer   []byte
	digest  v1.Hash // of that layer
	// fault answers a request, or leaves it to the registry.
	fault atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{content: make([]byte, 3<<20)}
	rand.Read(s.content) // never fails
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := s.fault.Load(); f == nil || !(*f)(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	s.host = strings.TrimPrefix(server.URL, "http://")
	s.layer = tarFile(t, regular("data", string(s.content)))
	large := static.NewLayer(s.layer, types.OCIUncompressedLayer)
	image, err := mutate.AppendLayers(empty.Image, static.NewLayer(tarFile(t, regular("etc/motd", "hello\n")), types.OCIUncompressedLayer), large)
	if err != nil {
		t.Fatal(err)
	}
	c, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if image, err = mutate.ConfigFile(image, &v1.ConfigFile{Architecture: "amd64", OS: "linux", RootFS: c.RootFS}); err != nil {
		t.Fatal(err)
	}
	if s.digest, err = large.Digest(); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(s.host + "/app:1")
	if err == nil {
		err = remote.Write(ref, image)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// answers has f answer what is asked of the large layer; nil: nobody interferes.
func (s *shop) answers(f func(http.ResponseWriter, *http.Request)) {
	if f == nil {
		s.fault.Store(nil)
		return
	}
	interfere := func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != "GET" || !strings.Contains(r.URL.Path, s.digest.Hex) {
			return false
		}
		f(w, r)
		return true
	}
	s.fault.Store(&interfere)
}

// A pull, from the command line to the image and through everything that can go wrong: what has
// come is kept, and what is damaged is fetched again.
func TestPull(t *testing.T) {
	b, s := newBanger(t), newShop(t)
	ref := s.host + "/app:1"
	pulls := func(image string) {
		t.Helper()
		if out := b.ok("image", "pull", "--size", "128M", ref, image); out != image+"\n" { // little to take the checksum of
			t.Errorf("pull says %q", out)
		}
		b.noDraft()
		archive := tar.NewReader(strings.NewReader(b.ok("image", "export", image, "-o", "-")))
		for {
			h, err := archive.Next()
			if err != nil {
				t.Fatalf("%s has no file data: %v", image, err)
			}
			if strings.TrimPrefix(h.Name, "./") == "data" {
				got, err := io.ReadAll(archive)
				if err != nil || !bytes.Equal(got, s.content) {
					t.Errorf("the file data of %s is another (%v)", image, err)
				}
				return
			}
		}
	}
	fails := func(words ...string) {
		t.Helper()
		b.refused(1, words, "image", "pull", ref, "none")
		b.noDraft()
		b.refused(1, []string{"no image"}, "image", "inspect", "none")
	}
	b.refused(1, []string{"has no such image", "check the name"}, "image", "pull", s.host+"/app:2")
	for _, bad := range []string{"UPPER", "a:b:c", "x@sha256:12", "", "http://x/y"} {
		b.refused(1, []string{"is no image of a registry"}, "image", "pull", bad)
	}
	b.refused(1, []string{"no image can be called"}, "image", "pull", ref, "../x")
	b.refused(1, []string{"nonesuch"}, "image", "pull", "--platform", "linux/nonesuch", ref)

	// What is no container image has nothing to choose from.
	rootfs := filepath.Join(t.TempDir(), "rootfs.tar")
	if err := os.WriteFile(rootfs, tarFile(t, regular("x", "y")), 0o600); err != nil {
		t.Fatal(err)
	}
	b.refused(1, []string{"no container image"}, "image", "import", "--ref", "x", rootfs, "none")
	b.refused(1, []string{"at most 1TiB"}, "image", "import", "--size", "99999T", rootfs, "none")

	// Elsewhere, in plain text.
	s.answers(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://192.0.2.1/blob", http.StatusTemporaryRedirect)
	})
	fails("plain text")
	s.answers(func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, len(s.layer))) })
	fails("something else than it was asked for")
	s.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	fails("refuses it to this user", "docker login")

	// A stall in the midst of a layer, and Ctrl-C.
	stalled := make(chan struct{})
	s.answers(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(s.layer)))
		w.Write(s.layer[:1<<20])
		http.NewResponseController(w).Flush()
		close(stalled)
		<-r.Context().Done()
	})
	c := b.command("image", "pull", ref, "none")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	<-stalled
	part := filepath.Join(b.state, "cache", "blobs", "sha256", s.digest.Hex+".part")
	eventually(t, "what has come is in the cache", func() bool {
		info, err := os.Stat(part)
		return err == nil && info.Size() == 1<<20
	})
	c.Process.Signal(unix.SIGINT)
	if err := c.Wait(); c.ProcessState.ExitCode() != 130 && c.ProcessState.ExitCode() != 1 {
		t.Errorf("Ctrl-C: %v", err)
	}
	b.noDraft()
	b.refused(1, []string{"no image"}, "image", "inspect", "none")
	var from atomic.Value
	s.answers(func(w http.ResponseWriter, r *http.Request) {
		from.Store(r.Header.Get("Range"))
		http.ServeContent(w, r, "", b.image("tiny").BuiltAt, bytes.NewReader(s.layer))
	})
	pulls("resumed")
	if from.Load() != fmt.Sprintf("bytes=%d-", 1<<20) {
		t.Errorf("it was resumed at %v", from.Load())
	}

	// From the cache alone, and where that is damaged.
	s.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	pulls("cached")
	s.answers(nil)
	if err := os.Truncate(strings.TrimSuffix(part, ".part"), 1000); err != nil {
		t.Fatal(err)
	}
	pulls("mended")
	if use := b.useOf("cache", "pulls"); use.ExclusiveBytes < 3<<20 {
		t.Errorf("the cache takes %+v", use)
	}
	b.ok("image", "prune", "--all")
	if left, err := os.ReadDir(filepath.Dir(part)); err == nil && len(left) > 0 {
		t.Errorf("pruned, the cache has %v", left)
	}

	// With credentials, as docker login leaves them.
	b.env = append(b.env, "DOCKER_CONFIG="+t.TempDir())
	config := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, s.host, base64.StdEncoding.EncodeToString([]byte("me:secret")))
	if err := os.WriteFile(filepath.Join(strings.TrimPrefix(b.env[len(b.env)-1], "DOCKER_CONFIG="), "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	locked := func(w http.ResponseWriter, r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		if user == "me" && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	s.fault.Store(&locked)
	pulls("private")
}
