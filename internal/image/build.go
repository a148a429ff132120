package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/image/apt"
	"banger/internal/image/ext4"
	"banger/internal/image/shelf"
)

const (
	// fileMirrorHook lets mmdebstrap reach mirrors that are directories of the host.
	fileMirrorHook = "/usr/share/mmdebstrap/hooks/file-mirror-automount"

	cleanupLimit = 2 * time.Minute
)

// Progress reports work: a stage's name, how much is done, of how much (0, 0: unknown).
type Progress = func(stage string, done, total int64)

// Build makes the image root/<m.Name>, from the Debian mirrors of the host's apt sources.
// Any user can; one who is not root needs subordinate ids. The image appears whole or not
// at all. errs.Conflict if the name is taken, errs.Unavailable if the host lacks
// something: a mirror, a program, room.
func Build(ctx context.Context, root string, m Manifest, progress Progress) (Image, error) {
	return build(ctx, apt.Etc, root, m, false, progress)
}

// Rebuild is Build that replaces an image of this name once the new one is finished.
func Rebuild(ctx context.Context, root string, m Manifest, progress Progress) (Image, error) {
	return build(ctx, apt.Etc, root, m, true, progress)
}

func build(ctx context.Context, etc, root string, m Manifest, replace bool, progress Progress) (Image, error) {
	stage, err := images.Begin(root, m.Name, replace)
	if err != nil {
		return Image{}, err
	}
	b := builder{stage: stage, m: m, etc: etc, progress: progress, tree: filepath.Join(stage.Dir, "tree")}
	if os.Geteuid() != 0 {
		b.namespace = ownIDs()
	}
	img, err := b.build(ctx)
	if err == nil {
		err = removeTree(ctx, b.tree)
	}
	var dir string
	if err == nil {
		dir, err = stage.Commit(img)
	}
	if err != nil {
		err = errors.Join(err, removeTree(ctx, b.tree))
	}
	if err = errors.Join(err, stage.Discard()); err != nil {
		return Image{}, b.explain(ctx, err)
	}
	return load(dir)
}

type builder struct {
	stage     *shelf.Stage
	m         Manifest
	etc       string // where apt's configuration lives
	progress  Progress
	tree      string   // the root filesystem as a directory
	namespace []string // ownIDs, or nothing for root
}

func (b *builder) build(ctx context.Context) (Image, error) {
	sources, err := apt.HostSources(b.etc, b.m.Release)
	if err != nil {
		return Image{}, err
	}
	options, err := apt.Options(ctx)
	if err != nil {
		return Image{}, err
	}
	install := filepath.Join(b.stage.Dir, "install.tar")
	if err := b.install(ctx, sources, options, install); err != nil {
		return Image{}, err
	}
	b.progress("unpacking", 0, 0)
	packages, err := b.unpack(ctx, install, apt.WithChecks(sources, options))
	if err != nil {
		return Image{}, err
	}
	b.progress("making the filesystem", 0, 0)
	path := filepath.Join(b.stage.Dir, "rootfs.ext4")
	err = ext4.MakeRoot(ctx, ext4.Root{
		Dir: b.tree, Path: path, Bytes: b.m.Bytes, JournalBytes: b.m.JournalBytes, Seed: "image " + b.m.Hash(), Prefix: b.namespace,
	})
	if err != nil {
		return Image{}, err
	}
	return seal(ctx, b.stage.Dir, path, Image{
		Name: b.m.Name, ManifestHash: b.m.Hash(), Packages: packages,
		Distribution: b.m.Distribution, Release: b.m.Release, Init: b.m.Init,
	}, b.progress)
}

// seal moves the filesystem at path, which nobody writes to any more, to its place in dir,
// and returns i with what is to be known of it. It is on disk then.
func seal(ctx context.Context, dir, path string, i Image, progress Progress) (_ Image, err error) {
	if err := os.Chmod(path, 0o444); err != nil {
		return Image{}, err
	}
	i.SHA256, i.VirtualBytes, err = shelf.Checksum(ctx, path, func(done, total int64) { progress("checksum", done, total) })
	if err != nil {
		return Image{}, err
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
	i.BuiltAt = time.Now().UTC().Truncate(time.Second)
	return i, os.Rename(path, filepath.Join(dir, rootfsFile(i.SHA256)))
}

// install makes a tar of the packages as mmdebstrap installs them.
func (b *builder) install(ctx context.Context, sources []apt.Source, options []string, to string) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	args := []string{
		"--variant=" + b.m.Variant, "--architectures=amd64", "--format=tar",
		"--include=" + strings.Join(b.m.Packages, ","),
		"--skip=output/dev",         // the guest's kernel fills /dev, and no namespace may make devices
		"--dpkgopt=force-unsafe-io", // dpkg need not sync each file: a build that is cut short is thrown away
		`--extract-hook=ls "$1/var/cache/apt/archives" > "$1` + archivesFile + `"`,
	}
	env := apt.Env()
	if b.namespace == nil {
		// In the stage, so that nothing is left elsewhere if this process is killed.
		env = append(env, "TMPDIR="+b.stage.Dir)
		args = append(args, "--mode=root")
	} else {
		// Not in the stage: the subordinate ids may not be able to reach it.
		env = append(env, "TMPDIR=/var/tmp")
		args = append(args, "--mode=unshare")
	}
	for _, o := range options {
		args = append(args, "--aptopt="+o)
	}
	list := ""
	for _, s := range sources {
		list += s.Line() + "\n"
		if s.Local() {
			args = append(args, "--hook-dir="+fileMirrorHook)
		}
	}
	args = append(args, b.m.Release, "-", "-")
	err = host.Run(ctx, host.Command{
		Path: "mmdebstrap", Args: args, Env: env, Stdin: strings.NewReader(list), Stdout: f, Stderr: &stages{to: b.progress},
	})
	return apt.Words(err)
}

var errTarEnded = errors.New("tar has ended")

// unpack makes the tree out of the installation's tar, as the manifest wants it.
func (b *builder) unpack(ctx context.Context, install string, sources []apt.Source) ([]Package, error) {
	f, err := os.Open(install)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.Mkdir(b.tree, 0o755); err != nil {
		return nil, err
	}
	m := b.m
	if m.Variant != "extract" {
		m.Entries = append([]Entry{guestSources(sources)}, m.Entries...)
	}
	r, w := io.Pipe()
	var packages []Package
	rewritten := make(chan error, 1)
	go func() {
		var err error
		packages, err = rewriteRootfs(f, w, m, func(busybox []byte) ([]string, error) { return b.applets(ctx, busybox) })
		w.CloseWithError(err)
		rewritten <- err
	}()
	argv := append(b.namespace[:len(b.namespace):len(b.namespace)], "tar", "--extract", "--numeric-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*", "-C", b.tree)
	err = host.Run(ctx, host.Command{Path: argv[0], Args: argv[1:], Env: apt.Env(), Stdin: r})
	r.CloseWithError(errTarEnded) // and so does the rewriting, if tar failed
	if rewriteErr := <-rewritten; rewriteErr != nil && !errors.Is(rewriteErr, errTarEnded) {
		return nil, rewriteErr // tar's own error is that its input broke off
	}
	if err != nil {
		return nil, err
	}
	return packages, os.Remove(install)
}

// guestSources is the image's own sources.list: the host's mirrors of Debian, without
// those that are directories of the host.
func guestSources(sources []apt.Source) Entry {
	e := Entry{Path: "/etc/apt/sources.list", Mode: 0o644}
	for _, s := range sources {
		if !s.Local() {
			e.Content += s.Line() + "\n"
		}
	}
	return e
}

// applets asks a busybox for its applets by running it here.
func (b *builder) applets(ctx context.Context, busybox []byte) ([]string, error) {
	path := filepath.Join(b.stage.Dir, "busybox")
	if err := os.WriteFile(path, busybox, 0o700); err != nil {
		return nil, err
	}
	out, err := host.Output(ctx, host.Command{Path: path, Args: []string{"--list-full"}})
	return strings.Fields(string(out)), errors.Join(err, os.Remove(path))
}

// ownIDs is the command that enters a namespace where root is this user and the image's
// other users are the user's subordinate ids.
func ownIDs() []string { return []string{"unshare", "--user", "--map-root-user", "--map-auto"} }

// removeTree removes a tree whose files may belong to subordinate ids. It also does so
// after ctx is done.
func removeTree(ctx context.Context, tree string) error {
	err := os.RemoveAll(tree)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	argv := append(ownIDs(), "rm", "-rf", tree)
	return host.Run(ctx, host.Command{Path: argv[0], Args: argv[1:]})
}

// Sweep removes what builds that were killed have left below root. The caller makes sure
// that none is at work there.
func Sweep(ctx context.Context, root string) error {
	left, err := shelf.Leftovers(root)
	for _, dir := range left {
		err = errors.Join(err, removeTree(ctx, dir))
	}
	return err
}

// explain makes an error of the build one for a person.
func (b *builder) explain(ctx context.Context, err error) error {
	if _, ok := errors.AsType[*errs.Error](err); ok || ctx.Err() != nil {
		return err
	}
	kind, hint := errs.Internal, ""
	switch text := err.Error(); {
	case errors.Is(err, unix.ENOSPC) || strings.Contains(text, "No space left on device"):
		kind, hint = errs.Unavailable, "make room in "+filepath.Dir(b.stage.Dir)
	case strings.Contains(text, "Could not allocate block"), strings.Contains(text, "Could not allocate inode"):
		kind, hint = errs.Invalid, "give the manifest a larger size than "+units.BytesSize(float64(b.m.Bytes))
	case strings.Contains(text, "Unable to locate package"):
		kind, hint = errs.Invalid, "correct the manifest's list of packages"
	case strings.Contains(text, "Could not resolve") || strings.Contains(text, "Could not connect") || strings.Contains(text, "Failed to fetch"):
		kind, hint = errs.Unavailable, "check that the mirrors in the host's apt sources can be reached: apt-get update"
	case strings.Contains(text, "subuid") || strings.Contains(text, "newuidmap") || strings.Contains(text, "unshare"):
		kind, hint = errs.Unavailable, "give this user subordinate ids (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER, package uidmap), or build as root"
	}
	return errs.New(kind, "can't build image %s", b.m.Name).Because(err).Try("%s", hint)
}

// stageNames are mmdebstrap's messages that mark a stage, and what to call it.
var stageNames = map[string]string{
	"I: running apt-get update...":                          "fetching package lists",
	"I: downloading packages with apt...":                   "downloading packages",
	"I: extracting archives...":                             "extracting packages",
	"I: installing essential packages...":                   "installing essential packages",
	"I: installing remaining packages inside the chroot...": "installing packages",
	"I: creating tarball...":                                "packing",
}

// stages turns mmdebstrap's messages into progress.
type stages struct {
	to   Progress
	line bytes.Buffer
}

func (s *stages) Write(p []byte) (int, error) {
	for _, c := range p {
		if c != '\n' {
			s.line.WriteByte(c)
			continue
		}
		if stage, ok := stageNames[s.line.String()]; ok {
			s.to(stage, 0, 0)
		}
		s.line.Reset()
	}
	return len(p), nil
}
