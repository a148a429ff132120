package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// lair is where hostile inputs are made. Beside it lies what they are after.
type lair struct {
	*testing.T
	dir    string
	canary string // path of a file outside
}

func (h *lair) file(b []byte) string {
	f, err := os.CreateTemp(h.dir, "input-")
	if err == nil {
		_, err = f.Write(b)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		h.Fatal(err)
	}
	return f.Name()
}

// tar is a root filesystem.
func (h *lair) tar(entries ...entry) string { return h.file(tarOf(h, entries...)) }

// layers is an image.
func (h *lair) layers(layers ...[]entry) string {
	l := newLayout(h)
	var blobs [][]byte
	for _, entries := range layers {
		blobs = append(blobs, tarOf(h, entries...))
	}
	l.index(l.image(v1.Config{}, blobs...))
	return l.dir
}

// raw is an archive with a header as no writer makes one.
func (h *lair) raw(change func(header []byte), content string) string {
	b := tarOf(h, entry{tar.Header{Typeflag: tar.TypeReg, Name: "file", Mode: 0o644, Format: tar.FormatUSTAR}, content})
	change(b[:512])
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return h.file(b)
}

// pax is a root filesystem whose one file has these records, whatever they are.
func (h *lair) pax(records string) string {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "PaxHeaders/file", Mode: 0o644, Size: int64(len(records))}); err != nil {
		h.Fatal(err)
	}
	io.WriteString(w, records)
	w.Flush()
	head := b.Bytes()
	head[156] = tar.TypeXHeader
	copy(head[148:156], "        ")
	sum := 0
	for _, c := range head[:512] {
		sum += int(c)
	}
	copy(head[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return h.file(append(head, tarOf(h, file("file", "content"))...))
}

func record(key, value string) string {
	n := len(key) + len(value) + 3
	for len(strconv.Itoa(n))+len(key)+len(value)+3 != n {
		n = len(strconv.Itoa(n)) + len(key) + len(value) + 3
	}
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}

// bomb is an image of one layer that unfolds to many zeros.
func (h *lair) bomb(bytes int64, compress func(io.Writer) io.WriteCloser, kind types.MediaType) string {
	l := newLayout(h)
	path := filepath.Join(l.dir, "layer")
	f, err := os.Create(path)
	if err != nil {
		h.Fatal(err)
	}
	z := compress(f)
	w := tar.NewWriter(z)
	err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Mode: 0o644, Size: bytes})
	if err == nil {
		_, err = io.CopyN(w, zeros{}, bytes)
	}
	if err = errors.Join(err, w.Close(), z.Close(), f.Close()); err != nil {
		h.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		h.Fatal(err)
	}
	layer := l.blob(b, kind)
	l.manifest([]v1.Descriptor{layer}, []v1.Hash{layer.Digest})
	return l.dir
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func gzipTo(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }

func zstdTo(w io.Writer) io.WriteCloser {
	z, err := zstd.NewWriter(w)
	if err != nil {
		panic(err)
	}
	return z
}

// manifest is the one image of the layout.
func (l testLayout) manifest(layers []v1.Descriptor, diffs []v1.Hash) {
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: layers}
	m.Config = l.json(v1.ConfigFile{Architecture: "amd64", OS: "linux", RootFS: v1.RootFS{Type: "layers", DiffIDs: diffs}}, types.OCIConfigJSON)
	l.index(l.json(m, types.OCIManifestSchema1))
}

// many is n entries, compressed.
func (h *lair) many(n int, each func(i int) entry) string {
	f, err := os.CreateTemp(h.dir, "input-")
	if err != nil {
		h.Fatal(err)
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		h.Fatal(err)
	}
	w := tar.NewWriter(z)
	for i := range n {
		e := each(i)
		e.Size = int64(len(e.content))
		if err := w.WriteHeader(&e.Header); err != nil {
			h.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			h.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close(), f.Close()); err != nil {
		h.Fatal(err)
	}
	return f.Name()
}
