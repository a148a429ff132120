// Package oci reads root filesystems as others keep them (OCI layouts and archives, Docker
// archives, tar archives) and writes them as one ext4 filesystem. It owns those formats and
// how layers add up. All it reads may be hostile: nothing of it is ever a path of the host's,
// what it makes the reader remember is bounded, and what has a digest is checked against it.
// It knows nothing of where images are kept.
package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/errs"
	"banger/internal/image/ext4"
)

// Config is what a container image says about running it.
type Config struct {
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	WorkDir    string
}

// Layer is a tar archive, compressed or not.
type Layer struct {
	Name   string // for messages
	Size   int64  // compressed
	Digest string // SHA-256 of it as it is, or "" if nobody says
	DiffID string // SHA-256 of it uncompressed, or ""
	Open   func(ctx context.Context) (io.ReadCloser, error)
}

// Source is a root filesystem to be.
type Source struct {
	Kind   Kind
	Name   string   // the image's own name, if it tells: name:tag
	Digest string   // of its manifest: sha256:…, if it has one
	Config *Config  // nil if it is no container image
	Layers []Layer  // the lowest first
	Raw    *os.File // of the kind Ext4: the filesystem itself
	close  func() error
}

// Kind is a format.
type Kind string

const (
	Layout Kind = "oci"
	Docker Kind = "docker"
	Tar    Kind = "tar"
	Ext4   Kind = "ext4"
)

// OnClose has Close call end too.
func (s *Source) OnClose(end func() error) {
	inner := s.close
	s.close = func() error {
		if inner == nil {
			return end()
		}
		return errors.Join(inner(), end())
	}
}

// Close lets go of the files it was read from.
func (s *Source) Close() error {
	if s.close == nil {
		return nil
	}
	return s.close()
}

// Progress tells what is being done and how much of it, in compressed bytes; a total of 0 is
// one that nobody knows.
type Progress = func(stage string, done, total int64)

// Write writes the filesystem that the layers add up to. The caller closes out, which is a
// finished filesystem then.
func (s *Source) Write(ctx context.Context, out *ext4.Writer, size ext4.Size, progress Progress) error {
	if len(s.Layers) > maxLayers {
		return refuse("it has %d layers; more than %d are refused", len(s.Layers), maxLayers)
	}
	f, err := newFlattener(out, s.Kind == Tar)
	if err != nil {
		return err
	}
	for i, l := range s.Layers {
		stage := "unpacking"
		if s.Kind != Tar {
			stage = fmt.Sprintf("unpacking layer %d of %d", i+1, len(s.Layers))
		}
		if err := f.applyLayer(ctx, l, func(done, total int64) { progress(stage, done, total) }); err != nil {
			return err
		}
	}
	if s.Config != nil && s.Config.WorkDir != "" {
		if err := f.workDir(s.Config.WorkDir); err != nil {
			return err
		}
	}
	return out.Finish(ctx, size, f.tree.directories())
}

const maxLayers = 512

// workDir makes the directory that the image's program is to start in, as those who run
// containers do.
func (f *flattener) workDir(name string) error {
	parts, err := split(name)
	if err == nil {
		_, err = f.walk(parts, &ext4.Attr{})
	}
	if err != nil {
		return errs.New(errs.Invalid, "its working directory %q can't be made", name).Because(err)
	}
	return nil
}

func (f *flattener) applyLayer(ctx context.Context, l Layer, progress func(done, total int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	file, err := l.Open(ctx)
	if err != nil {
		return err
	}
	defer file.Close()
	var in io.Reader = &reported{r: file, total: l.Size, to: progress}
	if l.Digest != "" {
		in = verify(in, "the layer "+l.Name, l.Size, l.Digest)
	}
	tape, err := decompress(in)
	if err != nil {
		return explainLayer(l, err)
	}
	defer tape.Close()
	ahead := readAhead(tape)
	defer func() {
		cancel()
		ahead.Close()
	}()
	var layer io.Reader = ahead
	if l.DiffID != "" {
		layer = verify(layer, "the uncompressed layer "+l.Name, -1, l.DiffID)
	}
	if err := f.apply(ctx, layer); err != nil {
		return explainLayer(l, err)
	}
	// What follows the archive counts for the digests.
	if _, err := io.Copy(io.Discard, layer); err != nil {
		return explainLayer(l, err)
	}
	_, err = io.Copy(io.Discard, in)
	return explainLayer(l, err)
}

// explainLayer says in which layer something is wrong, where there are any to speak of.
func explainLayer(l Layer, err error) error {
	if e := errs.KindOf(err); err == nil || e != errs.Invalid || l.DiffID == "" || strings.Contains(err.Error(), l.Name) {
		return err
	}
	return errs.New(errs.Invalid, "the layer %s is not to be used", l.Name).Because(err).Try("%s", errs.HintOf(err))
}

// reported tells how far a file has been read.
type reported struct {
	r     io.Reader
	n     int64
	told  int64
	total int64
	to    func(done, total int64)
}

func (p *reported) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if p.n += int64(n); p.n-p.told >= 1<<20 || err != nil {
		p.told = p.n
		p.to(p.n, p.total)
	}
	return n, err
}

// MaxDocument bounds manifests, indexes and configurations, in bytes: registries do too.
const MaxDocument = 4 << 20

// readDocument reads a small file that may have a digest.
func readDocument(r io.Reader, what, digest string) ([]byte, error) {
	if digest != "" {
		r = verify(r, what, -1, digest)
	}
	b, err := io.ReadAll(io.LimitReader(r, MaxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(b) > MaxDocument {
		return nil, refuse("%s is larger than %d MiB", what, MaxDocument>>20)
	}
	return b, nil
}

// configOf returns what an image's configuration says of running it, and checks that it is
// one, for the platform wanted, of these layers.
func configOf(c *v1.ConfigFile, layers int, p v1.Platform) (*Config, error) {
	if c.Architecture != "" && c.OS != "" && (c.Architecture != p.Architecture || c.OS != p.OS) {
		return nil, refuse("it is for %s/%s, not for %s/%s", c.OS, c.Architecture, p.OS, p.Architecture)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, refuse("its configuration tells of %d layers, its manifest of %d", len(c.RootFS.DiffIDs), layers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if d.Algorithm != "sha256" {
			return nil, refuse("its digests are of the kind %q; only sha256 is known", d.Algorithm)
		}
	}
	return &Config{Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env, User: c.Config.User,
		WorkDir: c.Config.WorkingDir}, nil
}
