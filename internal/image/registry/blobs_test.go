package registry

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// A layer that breaks off goes on from there, in the same pull or in a later one.
func TestBrokenLayerIsResumed(t *testing.T) {
	for _, later := range []bool{false, true} {
		t.Run(fmt.Sprint("later ", later), func(t *testing.T) {
			w, p := newWorld(t), newPuller(t)
			cuts := 1
			if later {
				cuts = p.Limits.Tries
			}
			content := w.bytes(t)
			w.fault(func(rw http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, w.large.Hex) {
					return false
				}
				from := 0
				if r.Header.Get("Range") != "" {
					fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
					rw.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
				}
				rw.Header().Set("Content-Length", fmt.Sprint(len(content)-from))
				if from > 0 {
					rw.WriteHeader(http.StatusPartialContent)
				}
				w.mu.Lock()
				cut := cuts > 0
				cuts--
				w.mu.Unlock()
				if !cut {
					rw.Write(content[from:])
					return true
				}
				rw.Write(content[from : from+1<<19])
				http.NewResponseController(rw).Flush()
				panic(http.ErrAbortHandler)
			})
			got, _, err := pulled(t, p, w.host()+"/app:1", nil)
			if later {
				if errs.KindOf(err) == "" || err == nil {
					t.Fatalf("got %q", got)
				}
				got, _, err = pulled(t, p, w.host()+"/app:1", nil)
			}
			if err != nil || got != whole {
				t.Fatalf("got %q, %v", got, err)
			}
			if w.count(w.large.Hex+"bytes=524288-") != 1 {
				t.Errorf("asked for %q", w.asked)
			}
		})
	}
}

// What of the cache is damaged is fetched again.
func TestDamagedCache(t *testing.T) {
	w, p := newWorld(t), newPuller(t)
	if _, _, err := pulled(t, p, w.host()+"/app:1", nil); err != nil {
		t.Fatal(err)
	}
	blobs, err := filepath.Glob(filepath.Join(p.Cache, "sha256", "*"))
	if err != nil || len(blobs) != 4 {
		t.Fatalf("cached are %q, %v", blobs, err)
	}
	for _, damage := range []func(path string) error{
		func(path string) error { return os.Truncate(path, 10) },
		func(path string) error { return os.Truncate(path, 0) },
		func(path string) error { return os.WriteFile(path, []byte("something else"), 0o600) },
	} {
		for _, b := range blobs {
			if err := damage(b); err != nil {
				t.Fatal(err)
			}
		}
		if got, _, err := pulled(t, p, w.host()+"/app:1", nil); err != nil || got != whole {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

func TestForget(t *testing.T) {
	w, p := newWorld(t), newPuller(t)
	if n, err := p.Forget(false); n != 0 || err != nil {
		t.Errorf("of nothing: %d, %v", n, err)
	}
	if _, _, err := pulled(t, p, w.host()+"/app:1", nil); err != nil {
		t.Fatal(err)
	}
	for _, dry := range []bool{true, false} {
		if n, err := p.Forget(dry); n < 3<<20 || err != nil {
			t.Errorf("dry %v: %d, %v", dry, n, err)
		}
	}
	if n, err := p.Forget(true); n != 0 || err != nil {
		t.Errorf("afterwards: %d, %v", n, err)
	}
	if got, _, err := pulled(t, p, w.host()+"/app:1", nil); err != nil || got != whole {
		t.Errorf("pulled again: %q, %v", got, err)
	}
}

// A pull whose cache is on a disk that is full says so at once, and goes on where it was once there
// is room.
func TestFullCache(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root can mount a small filesystem")
	}
	w, p := newWorld(t), newPuller(t)
	if err := unix.Mount("tmpfs", p.Cache, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("SKIP: this host lets nobody mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(p.Cache, unix.MNT_DETACH) })
	w.fault(nil)
	if got, _, err := pulled(t, p, w.host()+"/app:1", nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %q, %v", got, err)
	}
	if n := w.count(w.large.Hex); n != 1 {
		t.Errorf("the layer was asked for %d times", n)
	}
	if err := unix.Mount("tmpfs", p.Cache, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if got, _, err := pulled(t, p, w.host()+"/app:1", nil); err != nil || got != whole {
		t.Errorf("with more room: %q, %v", got, err)
	}
	if w.count(w.large.Hex+"bytes=") != 1 {
		t.Errorf("it began anew: %q", w.asked)
	}
}
