package image

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/image/apt"
	"banger/internal/image/ext4"
	"banger/internal/image/oci"
	"banger/internal/image/shelf"
)

// Progress reports work: a stage's name, how much is done, of how much (0, 0: unknown).
type Progress = func(stage string, done, total int64)

// Rebuild makes the image root/<m.Name> of a runtime bundle, from the Debian mirrors of the
// host's apt sources, and replaces one of this name once the new one is finished. Any user
// can; one who is not root needs subordinate ids. The image appears whole or not at all.
// errs.Unavailable if the host lacks something: a mirror, a program, room.
func Rebuild(ctx context.Context, root string, m Manifest, progress Progress) (_ Image, err error) {
	stage, err := images.Begin(root, m.Name, true)
	if err != nil {
		return Image{}, err
	}
	scratch, err := shelf.Scratch(root)
	if err != nil {
		return Image{}, errors.Join(err, stage.Discard())
	}
	defer func() { err = errors.Join(err, removeWork(ctx, scratch), stage.Discard()) }()
	b := newBuilder(m.Name, m, BuildOptions{Etc: apt.Etc}, progress)
	if err := b.prepare(ctx); err != nil {
		return Image{}, err
	}
	b.dir = scratch
	path, i, err := b.filesystem(ctx)
	if err == nil {
		i.Name = m.Name
		i, err = seal(ctx, stage.Dir, path, i, progress)
	}
	if err != nil {
		return Image{}, b.explain(ctx, err)
	}
	dir, err := stage.Commit(i)
	if err != nil {
		return Image{}, err
	}
	return load(dir)
}

// Workshop runs the commands of manifests.
type Workshop interface {
	// Run boots a machine from the image base, has its guest run the commands by /bin/sh, one
	// after another, and writes what its disk holds then to the new file at path. Nothing
	// else is left of it. errs.Invalid if a command fails, with what it said.
	Run(ctx context.Context, base Image, commands []string, path string, progress Progress) error
}

// BuildOptions say how an image is built.
type BuildOptions struct {
	Etc      string   // where apt's configuration lives
	Refresh  bool     // with the mirror's newest packages, even if nothing else has changed
	Workshop Workshop // needed where the manifest has commands
}

// Build makes an image of the manifest and lets name mean it; see [Rebuild]. A phase whose
// hash was built before is not run again, and if none has to be, the image stays as it is.
// Those who ask for the same at the same time get the same.
func (s *Store) Build(ctx context.Context, name string, m Manifest, o BuildOptions, progress Progress) (Image, error) {
	name, err := ParseName(name)
	if err != nil {
		return Image{}, err
	}
	b := newBuilder(name, m, o, progress)
	b.outputs = outputs{filepath.Join(s.dir, outputsDir)}
	if err := b.prepare(ctx); err != nil {
		return Image{}, err
	}
	if i, err := s.named(name); err == nil && !o.Refresh && i.ManifestHash == m.Hash() && slices.Equal(i.Phases, b.phases) {
		return i, nil
	}
	key := hashOf("build", name, m.Hash(), b.phases, o.Refresh)
	return s.Share(ctx, key, progress, func(ctx context.Context, progress Progress) (Image, error) {
		b.progress = progress
		return s.build(ctx, &b)
	})
}

func (s *Store) build(ctx context.Context, b *builder) (_ Image, err error) {
	d, err := s.Begin(b.name)
	if err != nil {
		return Image{}, err
	}
	defer func() { err = errors.Join(err, d.Discard()) }()
	b.dir = d.Dir
	path, i, err := b.filesystem(ctx)
	if err == nil {
		i, err = d.Commit(ctx, path, i, b.progress)
	}
	if err != nil {
		return Image{}, b.explain(ctx, err)
	}
	return i, b.outputs.evict(keepOutputs, outputInUse)
}

type builder struct {
	BuildOptions
	name      string
	m         Manifest
	progress  Progress
	namespace []string // ownIDs, or nothing for root
	dir       string   // of its own, for all that is made on the way
	outputs   outputs

	sources []apt.Source
	options []string // of apt
	phases  []Phase
}

func newBuilder(name string, m Manifest, o BuildOptions, progress Progress) builder {
	b := builder{BuildOptions: o, name: name, m: m, progress: progress}
	if os.Geteuid() != 0 {
		b.namespace = ownIDs()
	}
	return b
}

// prepare finds out what the build starts from.
func (b *builder) prepare(ctx context.Context) (err error) {
	if len(b.m.Commands) > 0 && b.Workshop == nil {
		return errs.New(errs.Invalid, "image %s can't be built here: its manifest has commands", b.name)
	}
	if b.sources, err = apt.HostSources(b.Etc, b.m.Release); err != nil {
		return err
	}
	if b.options, err = apt.Options(ctx); err != nil {
		return err
	}
	b.phases = b.m.plan(b.sources)
	return nil
}

// filesystem makes the image's filesystem, and tells what is to be known of it.
func (b *builder) filesystem(ctx context.Context) (path string, i Image, err error) {
	i = Image{ManifestHash: b.m.Hash(), ManifestPath: b.m.Path, Phases: b.phases,
		Distribution: b.m.Distribution, Release: b.m.Release, Init: b.m.Init}
	if len(b.m.Commands) == 0 {
		path, sealed, err := b.withFiles(ctx)
		i.Packages, i.SHA256, i.VirtualBytes = sealed.Packages, sealed.SHA256, sealed.VirtualBytes
		return path, i, err
	}
	half, there := b.outputs.get(phaseCommands+"-base", b.halfHash())
	if !there || b.Refresh {
		made, _, err := b.withFiles(ctx)
		if err != nil {
			return "", i, err
		}
		if half, err = b.outputs.put(phaseCommands+"-base", b.halfHash(), made); err != nil {
			return "", i, err
		}
	}
	info, err := os.Stat(half)
	if err != nil {
		return "", i, err
	}
	base := i
	base.Name, base.Dir, base.Path, base.VirtualBytes = b.name, filepath.Dir(half), half, info.Size()
	path = filepath.Join(b.dir, "rootfs")
	if err := b.Workshop.Run(ctx, base, b.m.Commands, path, b.progress); err != nil {
		return "", i, err
	}
	b.progress(phaseFilesystem, 0, 0)
	i.Packages, err = Tidy(ctx, path, false)
	return path, i, err
}

// halfHash identifies the filesystem that the commands are run on.
func (b *builder) halfHash() string {
	return hashOf(phaseHash(b.phases, phaseFiles), b.m.Bytes, b.m.JournalBytes)
}

// withFiles makes a filesystem of all but what commands do, and tells its packages and, if it is
// to stay as it is, its checksum.
func (b *builder) withFiles(ctx context.Context) (path string, sealed Image, err error) {
	path = filepath.Join(b.dir, "rootfs.ext4")
	out, err := ext4.NewWriter(path, "image "+b.m.Hash(), b.m.Bytes)
	if err != nil {
		return "", sealed, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	a := b.archive(ctx)
	src := oci.Source{Kind: oci.Tar, Layers: []oci.Layer{{Name: "packages", Open: func(context.Context) (io.ReadCloser, error) { return a, nil }}}}
	err = src.Write(ctx, out, ext4.Size{Bytes: b.m.Bytes, JournalBytes: b.m.JournalBytes}, func(string, int64, int64) {})
	if err == nil && len(b.m.Commands) == 0 { // while mmdebstrap removes what it has worked in
		sealed, err = checked(ctx, path, b.progress)
	}
	packages, archiveErr := a.end()
	if archiveErr != nil { // why there was no more to write, or what was written is not to be used
		err = archiveErr
	}
	sealed.Packages = packages
	return path, sealed, err
}

// checked tells what the finished filesystem at path is.
func checked(ctx context.Context, path string, progress Progress) (i Image, err error) {
	i.SHA256, i.VirtualBytes, err = shelf.Checksum(ctx, path, func(done, total int64) { progress("checksum", done, total) })
	return i, err
}

// seal moves the filesystem at path, which nobody writes to any more, to its place in dir,
// and returns i with what is to be known of it: its checksum too, unless i has that already. It is
// on disk then.
func seal(ctx context.Context, dir, path string, i Image, progress Progress) (_ Image, err error) {
	if err := os.Chmod(path, 0o444); err != nil {
		return Image{}, err
	}
	if i.SHA256 == "" {
		now, err := checked(ctx, path, progress)
		if err != nil {
			return Image{}, err
		}
		i.SHA256, i.VirtualBytes = now.SHA256, now.VirtualBytes
	}
	if i.AllocatedBytes, err = shelf.Allocated(path); err != nil {
		return Image{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return Image{}, err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return Image{}, err
	}
	i.BuiltAt = time.Now().UTC() // to the nanosecond: two images made alike have digests of their own
	return i, os.Rename(path, filepath.Join(dir, rootfsFile(i.SHA256)))
}

var errUnread = errors.New("nobody reads the archive any more")

// archive is the tar of an image's files, made while it is read.
type archive struct {
	*io.PipeReader
	done     chan struct{} // closed when the rest is there
	packages []Package
	err      error
}

// archive starts to make the installed packages into what the manifest wants.
func (b *builder) archive(ctx context.Context) *archive {
	m := b.m
	if m.Variant != "extract" {
		m.Entries = append([]Entry{guestSources(apt.WithChecks(b.sources, b.options))}, m.Entries...)
	}
	r, w := io.Pipe()
	a := &archive{PipeReader: r, done: make(chan struct{})}
	installed, installer := io.Pipe()
	installing := make(chan error, 1)
	go func() {
		err := b.install(ctx, installer)
		installer.CloseWithError(err)
		installing <- err
	}()
	go func() {
		defer close(a.done)
		a.packages, a.err = rewriteRootfs(installed, w, m, func(busybox []byte) ([]string, error) { return b.applets(ctx, busybox) })
		if a.err == nil {
			b.progress(phaseFilesystem, 0, 0)
			w.Close()                                 // the filesystem can be finished
			_, a.err = io.Copy(io.Discard, installed) // what follows the end of the archive
		}
		installed.CloseWithError(a.err)
		w.CloseWithError(a.err)
		if err := <-installing; err != nil && errors.Is(a.err, err) { // it failed first
			a.err = err
		}
	}()
	return a
}

// Close tells the making that nobody reads any more.
func (a *archive) Close() error { return a.CloseWithError(errUnread) }

// end returns how the making went, and stops it if it still goes on.
func (a *archive) end() ([]Package, error) {
	a.Close()
	<-a.done
	if errors.Is(a.err, errUnread) { // because of who read it
		return a.packages, nil
	}
	return a.packages, a.err
}

// guestSources is the image's own sources.list: the host's mirrors of Debian, without
// those that are directories of the host.
func guestSources(sources []apt.Source) Entry {
	e := Entry{Path: "/etc/apt/sources.list", Mode: 0o644}
	for _, s := range sources {
		if s.Keyring = ""; !s.Local() { // the host's own keyring is not there
			e.Content += s.Line() + "\n"
		}
	}
	return e
}

// applets asks a busybox for its applets by running it here.
func (b *builder) applets(ctx context.Context, busybox []byte) ([]string, error) {
	path := filepath.Join(b.dir, "busybox")
	if err := os.WriteFile(path, busybox, 0o700); err != nil {
		return nil, err
	}
	out, err := host.Output(ctx, host.Command{Path: path, Args: []string{"--list-full"}})
	return strings.Fields(string(out)), errors.Join(err, os.Remove(path))
}

// noSpace is how programs say ENOSPC.
const noSpace = "No space left on device"

// isFull tells whether a disk of the host's is full, in the kernel's words or a program's.
func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), noSpace)
}

// explain makes an error of the build one for a person.
func (b *builder) explain(ctx context.Context, err error) error {
	if _, ok := errors.AsType[*errs.Error](err); ok || ctx.Err() != nil {
		return err
	}
	kind, hint := errs.Internal, ""
	switch text := err.Error(); {
	case isFull(err):
		kind, hint = errs.Unavailable, "make room in "+filepath.Dir(b.dir)
		if b.namespace != nil {
			hint += ", and in " + filepath.Dir(outside(b.dir))
		}
	case errors.Is(err, ext4.ErrFull):
		kind, hint = errs.Invalid, "give the manifest a larger size than "+units.BytesSize(float64(b.m.Bytes))
	case strings.Contains(text, "Unable to locate package"):
		kind, hint = errs.Invalid, "correct the manifest's list of packages"
	case strings.Contains(text, "Could not resolve") || strings.Contains(text, "Could not connect") || strings.Contains(text, "Failed to fetch"):
		kind, hint = errs.Unavailable, "check that the mirrors in the host's apt sources can be reached: apt-get update"
	case strings.Contains(text, "subuid") || strings.Contains(text, "newuidmap") || strings.Contains(text, "unshare"):
		kind, hint = errs.Unavailable, "give this user subordinate ids (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER, package uidmap), or build as root"
	}
	return errs.New(kind, "can't build image %s", b.name).Because(err).Try("%s", hint)
}
