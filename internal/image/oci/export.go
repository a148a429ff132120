package oci

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/image/ext4"
)

// WriteTar writes the files of a filesystem as a tar archive, by name. Holes are written as
// zeros, and sockets, for which the format has no place, left out.
func WriteTar(ctx context.Context, r *ext4.Reader, to io.Writer) error {
	w := tarWriter{ctx: ctx, fs: r, out: tar.NewWriter(to), first: map[ext4.Inode]string{}, seen: map[ext4.Inode]bool{}}
	if err := w.directory("./", ext4.Top); err != nil {
		return err
	}
	return w.out.Close()
}

type tarWriter struct {
	ctx   context.Context
	fs    *ext4.Reader
	out   *tar.Writer
	first map[ext4.Inode]string // of files with several names: the one that has the content
	seen  map[ext4.Inode]bool   // directories
}

func (w *tarWriter) directory(name string, ino ext4.Inode) error {
	if w.seen[ino] || strings.Count(name, "/") > 2*maxDepth {
		return errs.New(errs.Invalid, "the filesystem is damaged: the directory %q is in itself", name)
	}
	w.seen[ino] = true
	s, err := w.fs.Stat(ino)
	if err != nil {
		return err
	}
	if err := w.out.WriteHeader(header(name, tar.TypeDir, s)); err != nil {
		return err
	}
	var entries []ext4.Entry
	for e, err := range w.fs.Entries(s) {
		if err != nil {
			return err
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b ext4.Entry) int { return cmp.Compare(a.Name, b.Name) })
	for _, e := range entries {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if name == "./" && e.Name == "lost+found" { // the filesystem's own
			continue
		}
		if err := w.file(strings.TrimPrefix(name, "./")+e.Name, e.Inode); err != nil {
			return err
		}
	}
	return nil
}

func (w *tarWriter) file(name string, ino ext4.Inode) error {
	s, err := w.fs.Stat(ino)
	if err != nil {
		return err
	}
	kind := s.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return w.directory(name+"/", ino)
	}
	if first, ok := w.first[ino]; ok {
		return w.out.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: first, Mode: int64(s.Mode & 0o7777), Format: tar.FormatPAX})
	}
	if s.Links > 1 {
		w.first[ino] = name
	}
	var h *tar.Header
	switch kind {
	case unix.S_IFREG:
		h = header(name, tar.TypeReg, s)
		h.Size = s.Size
	case unix.S_IFLNK:
		h = header(name, tar.TypeSymlink, s)
		if h.Linkname, err = w.fs.Target(s); err != nil {
			return err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		h = header(name, map[uint32]byte{unix.S_IFCHR: tar.TypeChar, unix.S_IFBLK: tar.TypeBlock}[kind], s)
		h.Devmajor, h.Devminor = int64(s.Major), int64(s.Minor)
	case unix.S_IFIFO:
		h = header(name, tar.TypeFifo, s)
	default:
		return nil
	}
	if err := w.out.WriteHeader(h); err != nil {
		return errs.New(errs.Invalid, "the file %q has no place in a tar archive", name).Because(err)
	}
	if kind == unix.S_IFREG {
		_, err = io.Copy(w.out, w.fs.Content(s))
	}
	return err
}

func header(name string, kind byte, s *ext4.Stat) *tar.Header {
	h := &tar.Header{Typeflag: kind, Name: name, Mode: int64(s.Mode & 0o7777), Uid: int(s.UID), Gid: int(s.GID), ModTime: s.MTime, Format: tar.FormatPAX}
	for _, x := range s.Xattrs {
		if strings.ContainsAny(x.Name, "=\x00") { // the format's own separators
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrRecord+x.Name] = string(x.Value)
	}
	return h
}

// Meta is what an archive says of its image beside the files.
type Meta struct {
	Name   string
	Config Config
	Made   time.Time
}

// WriteArchive writes the files of a filesystem as an OCI archive of one layer. scratch is a
// directory for that, whose digest has to be known first.
func WriteArchive(ctx context.Context, r *ext4.Reader, m Meta, scratch string, to io.Writer) error {
	spooled, err := os.CreateTemp(scratch, "layer-")
	if err != nil {
		return err
	}
	defer spooled.Close()
	if err := os.Remove(spooled.Name()); err != nil {
		return err
	}
	layer, diff, err := writeLayer(ctx, r, spooled)
	if err != nil {
		return err
	}
	c := m.Config
	config := v1.ConfigFile{Architecture: "amd64", OS: "linux", Created: v1.Time{Time: m.Made}, RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diff}},
		History: []v1.History{{Created: v1.Time{Time: m.Made}, CreatedBy: "banger image export"}},
		Config:  v1.Config{Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User, WorkingDir: c.WorkDir}}
	out := archiveWriter{out: tar.NewWriter(to), made: m.Made}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{layer}}
	manifest.Config = out.json(config, types.OCIConfigJSON)
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{out.json(manifest, types.OCIManifestSchema1)}}
	index.Manifests[0].Annotations = map[string]string{refAnnotation: m.Name}
	b, err := json.Marshal(index)
	if err != nil {
		return err
	}
	out.file("index.json", b)
	out.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	out.copy(blobName(layer.Digest), layer.Size, io.NewSectionReader(spooled, 0, layer.Size))
	return errors.Join(out.err, out.out.Close())
}

// writeLayer writes a compressed layer and describes it, and what it is uncompressed.
func writeLayer(ctx context.Context, r *ext4.Reader, to io.Writer) (layer v1.Descriptor, diff v1.Hash, err error) {
	packed, plain := sha256.New(), sha256.New()
	counted := &countedWriter{w: io.MultiWriter(to, packed)}
	z, err := gzip.NewWriterLevel(counted, gzip.BestSpeed)
	if err != nil {
		return layer, diff, err
	}
	if err := errors.Join(WriteTar(ctx, r, io.MultiWriter(z, plain)), z.Close()); err != nil {
		return layer, diff, err
	}
	hash := func(sum []byte) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sum)} }
	return v1.Descriptor{MediaType: types.OCILayer, Size: counted.n, Digest: hash(packed.Sum(nil))}, hash(plain.Sum(nil)), nil
}

type countedWriter struct {
	w io.Writer
	n int64
}

func (c *countedWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// archiveWriter writes the files of a layout. The first error stays.
type archiveWriter struct {
	out  *tar.Writer
	made time.Time
	err  error
}

func (a *archiveWriter) copy(name string, size int64, r io.Reader) {
	if a.err != nil {
		return
	}
	if a.err = a.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: a.made}); a.err == nil {
		_, a.err = io.Copy(a.out, r)
	}
}

func (a *archiveWriter) file(name string, b []byte) {
	a.copy(name, int64(len(b)), strings.NewReader(string(b)))
}

// json adds a document as a blob.
func (a *archiveWriter) json(v any, kind types.MediaType) v1.Descriptor {
	b, err := json.Marshal(v)
	if a.err == nil {
		a.err = err
	}
	d := v1.Descriptor{MediaType: kind, Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256(b))}}
	a.file(blobName(d.Digest), b)
	return d
}
