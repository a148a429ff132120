package oci

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/image/ext4"
)

func reader(t *testing.T, path string) *ext4.Reader {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	r, err := ext4.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// exported has write fill a file.
func exported(t *testing.T, write func(*os.File) error) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "exported.tar"))
	if err == nil {
		err = write(f)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// What is exported and imported again is what it was.
func TestExport(t *testing.T) {
	h := &lair{t, t.TempDir(), ""}
	original, _, err := imported(t, h.layers(everyKind), Choice{})
	if err != nil {
		t.Fatal(err)
	}
	want := ofFilesystem(t, original)
	t.Run("tar", func(t *testing.T) {
		path := exported(t, func(f *os.File) error { return WriteTar(t.Context(), reader(t, original), f) })
		again, s, err := imported(t, path, Choice{})
		if err != nil || s.Kind != Tar {
			t.Fatal(s, err)
		}
		same(t, ofFilesystem(t, again), want)
	})
	t.Run("OCI archive", func(t *testing.T) {
		meta := Meta{Name: "app:1", Config: Config{Entrypoint: []string{"/app"}, Cmd: []string{"x"}, Env: []string{"A=1"}, User: "7"}, Made: time.Unix(1e9, 0).UTC()}
		path := exported(t, func(f *os.File) error { return WriteArchive(t.Context(), reader(t, original), meta, t.TempDir(), f) })
		again, s, err := imported(t, path, Choice{})
		if err != nil || s.Kind != Layout || s.Name != "app:1" || !slices.Equal(s.Config.Entrypoint, meta.Config.Entrypoint) || s.Config.User != "7" {
			t.Fatalf("%+v, %v", s, err)
		}
		same(t, ofFilesystem(t, again), want)
		needTools(t, "skopeo")
		out := run(t, "skopeo", "inspect", "--config", "oci-archive:"+path)
		if !strings.Contains(out, `"/app"`) {
			t.Errorf("skopeo says %s", out)
		}
	})
}

// Images that skopeo has converted are what they were.
func TestConvertedBySkopeo(t *testing.T) {
	needTools(t, "skopeo")
	l := newLayout(t)
	l.index(l.image(v1Config("/app"), tarOf(t, everyKind...), tarOf(t, file("second", "2"), file(".wh.empty", ""))))
	original, _, err := imported(t, l.dir, Choice{})
	if err != nil {
		t.Fatal(err)
	}
	want := ofFilesystem(t, original)
	dir := t.TempDir()
	for kind, to := range map[string]string{
		"oci-archive": "oci-archive:" + dir + "/a.tar:name:1", "docker-archive": "docker-archive:" + dir + "/d.tar:name:1", "zstd": "oci:" + dir + "/z:name",
	} {
		t.Run(kind, func(t *testing.T) {
			args := []string{"skopeo", "--insecure-policy", "copy", "-q", "oci:" + l.dir + ":latest", to}
			if kind == "zstd" {
				args = append(args[:4:4], "--dest-compress-format", "zstd", "--dest-compress", "oci:"+l.dir+":latest", to)
			}
			run(t, args...)
			path := strings.SplitN(to, ":", 3)[1]
			again, s, err := imported(t, path, Choice{})
			if err != nil || s.Config == nil || len(s.Config.Entrypoint) != 1 {
				t.Fatal(s, err)
			}
			same(t, ofFilesystem(t, again), want)
			info, err := os.Stat(path)
			if err != nil || info.IsDir() {
				return
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			streamed, err := OpenStream(f, "stream", t.TempDir(), Choice{})
			if err != nil {
				t.Fatal(err)
			}
			defer streamed.Close()
			fs, _, err := written(t, streamed)
			if err != nil {
				t.Fatal(err)
			}
			same(t, ofFilesystem(t, fs), want)
		})
	}
}
