package runtimedir

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"aead.dev/minisign"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// mirror is a server of packed bundles that can be made to lie.
type mirror struct {
	*httptest.Server
	files   map[string][]byte
	hook    func(w http.ResponseWriter, r *http.Request, content []byte) bool // true: it has answered
	asked   atomic.Int32
	fetcher *Fetcher
}

func newMirror(t testing.TB, archive []byte) *mirror {
	t.Helper()
	sum := sha256.Sum256(archive)
	m := &mirror{files: map[string][]byte{"/b.tar.zst": archive, "/b.tar.zst.sha256": []byte(hex.EncodeToString(sum[:]) + "  b.tar.zst\n")}}
	m.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := m.files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if strings.HasSuffix(r.URL.Path, ".zst") {
			m.asked.Add(1)
			if m.hook != nil && m.hook(w, r, b) {
				return
			}
		}
		http.ServeContent(w, r, "", made, bytes.NewReader(b))
	}))
	m.Config.ErrorLog = nil
	t.Cleanup(m.Close)
	m.fetcher = NewFetcher()
	m.fetcher.Retry = time.Millisecond
	m.fetcher.Client.Transport.(*http.Transport).TLSClientConfig = m.Client().Transport.(*http.Transport).TLSClientConfig
	return m
}

func (m *mirror) wanted() Wanted { return Wanted{Archive: Archive{URL: m.URL + "/b.tar.zst"}} }

func (m *mirror) fetch(t testing.TB, dir string, w Wanted) error {
	return m.fetcher.Fetch(t.Context(), dir, w, nobody, quiet)
}

// installed is a bundle of sample(1), and an archive of a newer one of sample(10).
func installed(t testing.TB) (dir string, archive []byte) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "banger")
	writeBundle(t, dir, made, sample(1))
	next := t.TempDir()
	writeBundle(t, next, made.Add(time.Hour), sample(10))
	return dir, packBundle(t, next)
}

func TestFetch(t *testing.T) {
	dir, archive := installed(t)
	m := newMirror(t, archive)
	if err := m.fetch(t, dir, m.wanted()); err != nil {
		t.Fatal(err)
	}
	intact(t, dir, sample(10))
	if left := beside(t, dir); !slices.Equal(left, []string{previousSuffix}) {
		t.Errorf("beside it lies %v", left)
	}
	intact(t, dir+previousSuffix, sample(1))
	if blocks := allocated(t, filepath.Join(dir, "images/zeros/zeros-0a.ext4")); blocks != 0 {
		t.Errorf("a file of zeros takes %d bytes", blocks)
	}
	// From a file, on a machine that has none; the directories above are made.
	path := filepath.Join(t.TempDir(), "b.tar.zst")
	if err := os.WriteFile(path, archive, 0o644); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(archive)
	w := Wanted{Archive: Archive{URL: "file://" + path, SHA256: hex.EncodeToString(sum[:]), Bytes: int64(len(archive))}}
	other := filepath.Join(t.TempDir(), "lib", "banger")
	if err := m.fetch(t, other, w); err != nil {
		t.Fatal(err)
	}
	intact(t, other, sample(10))
	if left := beside(t, other); len(left) != 0 {
		t.Errorf("beside it lies %v", left)
	}
}

func allocated(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// cut answers with the first n bytes, and then as the server's kind of failure has it.
func cut(n int) func(http.ResponseWriter, *http.Request, []byte) bool {
	return func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.Write(b[:n])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// An archive that was cut anywhere is never installed, whether the server hides that or not.
func TestFetchAcceptsNoCut(t *testing.T) {
	dir, archive := installed(t)
	m := newMirror(t, archive)
	sum := sha256.Sum256(archive)
	accepted, cuts := 0, 0
	for i := range 100 {
		n := i * len(archive) / 100
		if i == 99 {
			n = len(archive) - 1
		}
		cuts++
		w := m.wanted()
		switch i % 3 {
		case 0: // it breaks off, every time
			m.hook = cut(n)
		case 1: // it claims that this is all, with the right checksum of the whole
			m.hook = func(w http.ResponseWriter, _ *http.Request, b []byte) bool { w.Write(b[:n]); return true }
		case 2: // a file
			path := filepath.Join(t.TempDir(), "cut.tar.zst")
			if err := os.WriteFile(path, archive[:n], 0o644); err != nil {
				t.Fatal(err)
			}
			w.URL, w.SHA256 = "file://"+path, hex.EncodeToString(sum[:])
		}
		if err := m.fetch(t, dir, w); err == nil {
			accepted++
			t.Errorf("accepted after %d of %d bytes", n, len(archive))
		} else if errs.HintOf(err) == "" {
			t.Errorf("cut at %d: no hint: %v", n, err)
		}
		if err := removeParts(dir, ""); err != nil {
			t.Fatal(err)
		}
	}
	if sound(t, dir); accepted != 0 || len(beside(t, dir)) != 0 {
		t.Errorf("%d of %d cuts accepted, left: %v", accepted, cuts, beside(t, dir))
	}
	intact(t, dir, sample(1))
}

func TestFetchGoesOnWhereItBroke(t *testing.T) {
	dir, archive := installed(t)
	m := newMirror(t, archive)
	var ranges []string
	m.hook = func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		ranges = append(ranges, r.Header.Get("Range"))
		if len(ranges) > 6 {
			return false
		}
		return cutRange(w, r, b, 100<<10)
	}
	if err := m.fetch(t, dir, m.wanted()); err != nil {
		t.Fatal(err)
	}
	intact(t, dir, sample(10))
	if len(ranges) < 7 || ranges[0] != "" || !strings.HasPrefix(ranges[1], "bytes=") {
		t.Errorf("asked for %v", ranges)
	}

	// Another process goes on with what is there; what is there may be all.
	for _, have := range []int{1, len(archive) / 2, len(archive)} {
		dir, _ := installed(t)
		sum := sha256.Sum256(archive)
		if err := os.WriteFile(dir+"."+hex.EncodeToString(sum[:8])+partSuffix, archive[:have], 0o600); err != nil {
			t.Fatal(err)
		}
		asked := ""
		m.hook = func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
			asked = r.Header.Get("Range")
			return false
		}
		w := m.wanted()
		w.Bytes = int64(len(archive))
		if err := m.fetch(t, dir, w); err != nil {
			t.Fatal(err)
		}
		intact(t, dir, sample(10))
		if want := fmt.Sprintf("bytes=%d-", have); have < len(archive) && asked != want {
			t.Errorf("asked for %q, want %q", asked, want)
		}
	}
}

// All of an archive whose size nobody has told came before, and a server refuses to give more.
func TestFetchNeedsNoMore(t *testing.T) {
	dir, archive := installed(t)
	m := newMirror(t, archive)
	refuse := func(Record, func([]string) error) error { return errs.New(errs.Conflict, "a VM is in the way") }
	if err := m.fetcher.Fetch(t.Context(), dir, m.wanted(), refuse, quiet); errs.KindOf(err) != errs.Conflict {
		t.Fatalf("held: %v", err)
	}
	if err := m.fetch(t, dir, m.wanted()); err != nil {
		t.Fatal(err)
	}
	intact(t, dir, sample(10))

	// More than all is damage, and is not kept.
	dir, _ = installed(t)
	sum := sha256.Sum256(archive)
	if err := os.WriteFile(dir+"."+hex.EncodeToString(sum[:8])+partSuffix, append(slices.Clip(archive), 0), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.fetch(t, dir, m.wanted()); errs.KindOf(err) != errs.Invalid {
		t.Errorf("a byte too much: %v", err)
	}
	if err := m.fetch(t, dir, m.wanted()); err != nil {
		t.Error(err)
	}
}

// cutRange answers with at most n bytes of what was asked for, and breaks off.
func cutRange(w http.ResponseWriter, r *http.Request, b []byte, n int) bool {
	from := 0
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
	if from > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b)-1, len(b)))
		w.Header().Set("Content-Length", fmt.Sprint(len(b)-from))
		w.WriteHeader(http.StatusPartialContent)
	} else {
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	}
	w.Write(b[from:min(len(b), from+n)])
	http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func TestFetchGivesUpOnAServerThatStalls(t *testing.T) {
	dir, archive := installed(t)
	m := newMirror(t, archive)
	m.fetcher.Idle = 50 * time.Millisecond
	m.hook = func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.Write(b[:1000])
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return true
	}
	err := m.fetch(t, dir, m.wanted())
	if errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "nothing came for") {
		t.Errorf("got %v", err)
	}
	if n := m.asked.Load(); n != maxRetries+1 {
		t.Errorf("tried %d times", n)
	}
	intact(t, dir, sample(1))
	// Nor does it hold up someone who has had enough.
	m.fetcher.Idle = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	m.hook = func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		cancel()
		<-r.Context().Done()
		return true
	}
	if err := m.fetcher.Fetch(ctx, dir, m.wanted(), nobody, quiet); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// evil is an archive that Package would not write: these entries after the record, as they are.
func evil(t testing.TB, record string, entries ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, recordFile), []byte(record), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"--create", "--directory", dir, "--absolute-names", "--no-recursion", recordFile}, entries...)
	tar, err := exec.Command("tar", args...).Output()
	if err != nil {
		t.Fatalf("tar: %v", err)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(tar, nil)
}

func TestFetchAcceptsNothingElse(t *testing.T) {
	dir, archive := installed(t)
	public, private, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	strange, _, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, wrong := public.String(), strange.String()
	sign := func(b []byte) []byte {
		r := minisign.NewReader(bytes.NewReader(b))
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		return r.Sign(private)
	}
	older := t.TempDir()
	writeBundle(t, older, made.Add(-time.Hour), sample(20))
	oldArchive := packBundle(t, older)
	flipped := slices.Clone(archive)
	flipped[len(flipped)/2] ^= 4
	listed := func(path string, content string) string {
		return fmt.Sprintf(`{"schema":1,"artefacts":[{"name":"a","built_at":"2027-01-01T00:00:00Z","files":[{"path":%q,"bytes":%d,"sha256":"%x"}]}]}`, path, len(content), sha256.Sum256([]byte(content)))
	}
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte("victim"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/etc", link); err != nil {
		t.Fatal(err)
	}
	// serve puts an archive there with a checksum of its own, as who has taken the server would.
	serve := func(m *mirror, b []byte, signature []byte) {
		sum := sha256.Sum256(b)
		m.files["/b.tar.zst"], m.files["/b.tar.zst.sha256"] = b, []byte(hex.EncodeToString(sum[:]))
		if signature != nil {
			m.files["/b.tar.zst.minisig"] = signature
		}
	}
	for name, c := range map[string]struct {
		prepare func(*mirror, *Wanted)
		want    string
	}{
		"a flipped bit":                {func(m *mirror, w *Wanted) { m.files["/b.tar.zst"] = flipped }, ""},
		"a flipped bit, own checksum":  {func(m *mirror, w *Wanted) { serve(m, flipped, nil) }, ""},
		"another archive than told":    {func(m *mirror, w *Wanted) { w.SHA256 = strings.Repeat("0", 64) }, "must be 0000"},
		"another size than told":       {func(m *mirror, w *Wanted) { w.Bytes = int64(len(archive)) + 1 }, "and must have"},
		"more than told":               {func(m *mirror, w *Wanted) { w.Bytes = int64(len(archive)) - 1 }, ""},
		"bytes after the end":          {func(m *mirror, w *Wanted) { serve(m, append(slices.Clone(archive), 1, 2, 3), nil) }, ""},
		"no signature":                 {func(m *mirror, w *Wanted) { w.Key = key }, "the signature"},
		"an empty signature":           {func(m *mirror, w *Wanted) { w.Key = key; serve(m, archive, []byte{}) }, "not signed"},
		"signed with another key":      {func(m *mirror, w *Wanted) { w.Key = wrong; serve(m, archive, sign(archive)) }, "not signed"},
		"another archive's signature":  {func(m *mirror, w *Wanted) { w.Key = key; serve(m, flipped, sign(archive)) }, ""},
		"a signature that was altered": {func(m *mirror, w *Wanted) { w.Key = key; b := sign(archive); b[80] ^= 1; serve(m, archive, b) }, "not signed"},
		"a key that is none":           {func(m *mirror, w *Wanted) { w.Key = "RWQ" }, "no public key"},
		"an older bundle":              {func(m *mirror, w *Wanted) { serve(m, oldArchive, nil) }, "older than the one installed"},
		"an older bundle, well signed": {func(m *mirror, w *Wanted) { w.Key = key; serve(m, oldArchive, sign(oldArchive)) }, "older than the one installed"},
		"no archive at all":            {func(m *mirror, w *Wanted) { serve(m, []byte("<html>sign in</html>"), nil) }, ""},
		"not there":                    {func(m *mirror, w *Wanted) { w.URL = m.URL + "/other"; w.SHA256 = strings.Repeat("0", 64) }, "404"},
		"plain http":                   {func(m *mirror, w *Wanted) { w.URL = "http://127.0.0.1:1/b.tar.zst" }, "neither an https"},
		"led on to plain http": {func(m *mirror, w *Wanted) {
			m.hook = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				http.Redirect(w, r, "http://127.0.0.1:1/b.tar.zst", http.StatusFound)
				return true
			}
		}, "not https"},
		"led in circles": {func(m *mirror, w *Wanted) {
			m.hook = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				http.Redirect(w, r, r.URL.Path, http.StatusFound)
				return true
			}
		}, "on and on"},
		"a range that was not asked for": {func(m *mirror, w *Wanted) {
			m.hook = func(rw http.ResponseWriter, r *http.Request, b []byte) bool {
				if r.Header.Get("Range") == "" {
					return cutRange(rw, r, b, 1000)
				}
				rw.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(b)-1, len(b)))
				rw.WriteHeader(http.StatusPartialContent)
				rw.Write(b[5:])
				return true
			}
		}, "it answers with"},
		"a path that leads out":   {func(m *mirror, w *Wanted) { serve(m, evil(t, listed("../victim", "victim"), outside), nil) }, "no clean path"},
		"a file that is unlisted": {func(m *mirror, w *Wanted) { serve(m, evil(t, listed("a", "x"), outside), nil) }, "not what its bundle.json tells"},
		"a link":                  {func(m *mirror, w *Wanted) { serve(m, evil(t, listed(link, ""), link), nil) }, ""},
		"a device":                {func(m *mirror, w *Wanted) { serve(m, evil(t, listed("dev/null", ""), "/dev/null"), nil) }, ""},
		"a file too few":          {func(m *mirror, w *Wanted) { serve(m, evil(t, listed("a", "x")), nil) }, "it lacks a"},
		"a record that is none":   {func(m *mirror, w *Wanted) { serve(m, evil(t, "{"), nil) }, "can't be used"},
		"a newer schema":          {func(m *mirror, w *Wanted) { serve(m, evil(t, `{"schema":9}`), nil) }, "schema is 9"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMirror(t, archive)
			w := m.wanted()
			c.prepare(m, &w)
			err := m.fetch(t, dir, w)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.want) || errs.HintOf(err) == "" {
				t.Errorf("got %v (hint %q), want it to say %q", err, errs.HintOf(err), c.want)
			}
			if err := removeParts(dir, ""); err != nil {
				t.Fatal(err)
			}
			if left := beside(t, dir); len(left) != 0 {
				t.Errorf("it left %v", left)
			}
		})
	}
	intact(t, dir, sample(1))

	// What is signed with the right key is taken; an older one where that is wanted.
	m := newMirror(t, archive)
	serve(m, archive, sign(archive))
	w := m.wanted()
	w.Key = key
	if err := m.fetch(t, dir, w); err != nil {
		t.Fatal(err)
	}
	intact(t, dir, sample(10))
	serve(m, oldArchive, sign(oldArchive))
	w.AllowDowngrade = true
	if err := m.fetch(t, dir, w); err != nil {
		t.Fatal(err)
	}
	intact(t, dir, sample(20))
}

func TestTwoFetchesAtOnce(t *testing.T) {
	dir, archive := installed(t)
	m := newMirror(t, archive)
	first, release := make(chan struct{}), make(chan struct{})
	m.hook = func(http.ResponseWriter, *http.Request, []byte) bool { close(first); <-release; return false }
	done := make(chan error, 1)
	go func() { done <- m.fetch(t, dir, m.wanted()) }()
	<-first
	if err := m.fetch(t, dir, m.wanted()); errs.KindOf(err) != errs.Busy {
		t.Errorf("the second: %v", err)
	}
	if err := Build(t.Context(), dir, Options{}, quiet); errs.KindOf(err) != errs.Busy {
		t.Errorf("a build meanwhile: %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("the first: %v", err)
	}
	intact(t, dir, sample(10))
}
