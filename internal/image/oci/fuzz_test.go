package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/image/ext4"
)

// FuzzFlatten applies two layers of any bytes, and finishes the directories of what comes of
// them: every name leads to a file that is there.
func FuzzFlatten(f *testing.F) {
	f.Add(tarOf(f, everyKind...), tarOf(f, file(".wh.etc", ""), file("bin/.wh..wh..opq", ""), link("x", "abs")))
	f.Add(tarOf(f, symlink("a", "b"), dir("b", 0o755), file("a/c", "x")), tarOf(f, link("d", "a/c"), file("b", "y")))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		w, err := ext4.NewWriter(filepath.Join(t.TempDir(), "fs"), "seed", 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		fl, err := newFlattener(w, false)
		if err != nil {
			t.Fatal(err)
		}
		fl.sparse = 1 << 20 // the zeros of more take longer than they find out
		for _, layer := range [][]byte{first, second} {
			if err := fl.apply(context.Background(), bytes.NewReader(layer)); err != nil {
				if _, ok := errors.AsType[*errs.Error](err); !ok && !errors.Is(err, ext4.ErrFull) {
					t.Errorf("an error that is no sentence: %v", err)
				}
				return
			}
		}
		seen := map[ext4.Inode]bool{}
		for d := range fl.tree.directories() {
			if seen[d.Inode] {
				t.Errorf("the directory %d is there twice", d.Inode)
			}
			seen[d.Inode] = true
			names := map[string]bool{}
			for _, e := range d.Entries {
				if names[e.Name] || e.Inode == 0 || e.Name == "" || len(e.Name) > 255 {
					t.Errorf("a name is wrong: %+v", e)
				}
				names[e.Name] = true
			}
		}
		for at := int32(1); at < fl.tree.count; at++ {
			if n := fl.tree.node(at); n.kind != gone && fl.tree.node(n.parent).kind != unix.S_IFDIR {
				t.Errorf("%q is in no directory", fl.tree.path(at))
			}
		}
	})
}

// inMemory is the files of a layout.
type inMemory map[string][]byte

func (m inMemory) Open(name string) (io.ReadCloser, int64, error) {
	b, ok := m[name]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
}

// FuzzLayout reads an index, a manifest and a configuration of any bytes.
func FuzzLayout(f *testing.F) {
	l := newLayout(f)
	config := l.json(v1.ConfigFile{Architecture: "amd64", OS: "linux"}, types.OCIConfigJSON)
	manifest := l.json(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config}, types.OCIManifestSchema1)
	l.index(manifest)
	read := func(name string) []byte { return readAll(f, filepath.Join(l.dir, name)) }
	f.Add(read("index.json"), read(blobName(manifest.Digest)), read(blobName(config.Digest)))
	f.Fuzz(func(t *testing.T, index, manifest, config []byte) {
		files := inMemory{"index.json": index, "manifest.json": index, "config.json": config,
			blobName(digestOf(manifest)): manifest, blobName(digestOf(config)): config}
		for _, open := range []func(Files, Choice) (*Source, error){layout, docker} {
			s, err := open(files, Choice{})
			if err != nil {
				if _, ok := errors.AsType[*errs.Error](err); !ok {
					t.Errorf("an error that is no sentence: %v", err)
				}
				continue
			}
			for _, layer := range s.Layers {
				if layer.DiffID == "" || layer.Size < 0 {
					t.Errorf("a layer that nothing can be checked of: %+v", layer)
				}
			}
		}
	})
}

// FuzzOpen opens a stream of any bytes, and reads it as a root filesystem if it seems one.
func FuzzOpen(f *testing.F) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(tarOf(f, everyKind...))
	w.Close()
	f.Add(z.Bytes())
	f.Add(tarOf(f, file("manifest.json", `[{"Config":"c.json"}]`), file("c.json", `{"architecture":"amd64","os":"linux"}`)))
	f.Add(tarOf(f, file("oci-layout", "{}"), file("index.json", "{}")))
	f.Add([]byte("\x28\xb5\x2f\xfd\x04\x00\x01\x00\x00"))
	f.Add([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\xe5\xa3"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := OpenStream(bytes.NewReader(b), "input", t.TempDir(), Choice{})
		if err != nil {
			if _, ok := errors.AsType[*errs.Error](err); !ok {
				t.Errorf("an error that is no sentence: %v", err)
			}
			return
		}
		defer s.Close()
		for _, l := range s.Layers {
			r, err := l.Open(t.Context())
			if err != nil {
				continue
			}
			for files := tar.NewReader(r); ; {
				if _, err := files.Next(); err != nil {
					break
				}
			}
			r.Close()
		}
	})
}
