package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// entry is a file of a layer in a test.
type entry struct {
	tar.Header
	content string
}

func dir(name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}}
}

func file(name, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content}
}

func symlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func link(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

func (e entry) owned(uid, gid int, mode int64) entry {
	e.Uid, e.Gid, e.Mode = uid, gid, mode
	return e
}

func (e entry) xattr(name, value string) entry {
	if e.PAXRecords == nil {
		e.PAXRecords = map[string]string{}
	}
	e.PAXRecords[xattrRecord+name] = value
	return e
}

var testTime = time.Unix(1_600_000_000, 0)

// tarOf makes an archive.
func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.content))
		if e.ModTime.IsZero() {
			e.ModTime = testTime
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// testLayout is an OCI layout in a directory.
type testLayout struct {
	t   testing.TB
	dir string
}

func newLayout(t testing.TB) testLayout {
	t.Helper()
	l := testLayout{t, t.TempDir()}
	l.write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return l
}

func (l testLayout) write(name string, b []byte) {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func digestOf(b []byte) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256(b))}
}

func (l testLayout) blob(b []byte, kind types.MediaType) v1.Descriptor {
	l.t.Helper()
	d := v1.Descriptor{MediaType: kind, Size: int64(len(b)), Digest: digestOf(b)}
	l.write(blobName(d.Digest), b)
	return d
}

func (l testLayout) json(v any, kind types.MediaType) v1.Descriptor {
	l.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.blob(b, kind)
}

// image adds an image of these layers, uncompressed archives.
func (l testLayout) image(config v1.Config, layers ...[]byte) v1.Descriptor {
	l.t.Helper()
	c := v1.ConfigFile{Architecture: "amd64", OS: "linux", Config: config, RootFS: v1.RootFS{Type: "layers"}}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for _, layer := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digestOf(layer))
		m.Layers = append(m.Layers, l.blob(gzipped(l.t, layer), types.OCILayer))
	}
	m.Config = l.json(c, types.OCIConfigJSON)
	return l.json(m, types.OCIManifestSchema1)
}

// index writes index.json; the first image is called latest.
func (l testLayout) index(images ...v1.Descriptor) {
	l.t.Helper()
	if len(images) > 0 && images[0].Annotations == nil {
		images[0].Annotations = map[string]string{refAnnotation: "latest"}
	}
	b, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: images})
	if err != nil {
		l.t.Fatal(err)
	}
	l.write("index.json", b)
}
