package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/image/ext4"
	"banger/internal/image/oci"
)

// Import says what becomes an image.
type Import struct {
	Name   string
	Source string // where it is from, for people
	Bytes  int64  // size of the filesystem; 0: what fits
	// Open opens it. scratch is a directory for what it needs on the way.
	Open func(ctx context.Context, scratch string) (*oci.Source, error)
}

// importJournal is the size of an imported filesystem's journal, in bytes.
const importJournal = 16 << 20

// checkLimit bounds how long e2fsck may look at a filesystem that others made.
const checkLimit = 5 * time.Minute

// Import makes an image of a root filesystem that others made. It appears whole or not at
// all.
func (s *Store) Import(ctx context.Context, in Import, progress Progress) (_ Image, err error) {
	draft, err := s.Begin(in.Name)
	if err != nil {
		return Image{}, err
	}
	defer func() {
		if err = errors.Join(err, draft.Discard()); err != nil {
			err = in.explain(ctx, draft, err)
		}
	}()
	src, err := in.Open(ctx, draft.Dir)
	if err != nil {
		return Image{}, err
	}
	path := filepath.Join(draft.Dir, "rootfs.ext4")
	err = errors.Join(in.write(ctx, src, path, progress), src.Close())
	if err != nil {
		return Image{}, err
	}
	i := describe(path)
	i.Source = in.Source
	if src.Config != nil {
		c := Config(*src.Config)
		i.Config = &c
	}
	return draft.Commit(ctx, path, i, progress)
}

func (in Import) write(ctx context.Context, src *oci.Source, path string, progress Progress) error {
	if src.Kind == oci.Ext4 {
		return in.take(ctx, src.Raw, path, progress)
	}
	out, err := ext4.NewWriter(path, in.Name+" "+src.Digest, in.Bytes)
	if err != nil {
		return err
	}
	err = src.Write(ctx, out, ext4.Size{Bytes: in.Bytes, JournalBytes: importJournal}, progress)
	return errors.Join(err, out.Close())
}

// take copies a filesystem that is one already. Its journal, if it has to be, is replayed in
// the copy.
func (in Import) take(ctx context.Context, from *os.File, path string, progress Progress) error {
	progress("copying", 0, 0)
	if err := copySparse(ctx, from, path, progress); err != nil {
		return err
	}
	if in.Bytes > 0 {
		return errs.New(errs.Invalid, "a filesystem that is one already keeps its size").Try("give VMs a larger disk: banger run --disk")
	}
	progress("checking", 0, 0)
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	// -p mends what the kernel would at a mount, and nothing else.
	err := host.Run(ctx, host.Command{Path: "e2fsck", Args: []string{"-f", "-p", path}, Env: append(os.Environ(), "LC_ALL=C")})
	if exit, ok := errors.AsType[*host.ExitError](err); ok && exit.Code == 1 { // mended
		err = nil
	}
	if err != nil {
		return errs.New(errs.Invalid, "its ext4 filesystem is damaged").Because(err).Try("repair it: e2fsck -f FILE")
	}
	return ScrubFstab(ctx, path)
}

func copySparse(ctx context.Context, from *os.File, path string, progress Progress) error {
	to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if err := to.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		end := size
		if err == nil {
			if hole, err := unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE); err == nil {
				end = hole
			}
		} else {
			data = at
		}
		at = min(end, data+64<<20)
		if _, err := to.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.Copy(to, io.NewSectionReader(from, data, at-data)); err != nil {
			return err
		}
		progress("copying", at, size)
	}
	return to.Sync()
}

// describe looks into a filesystem for what it says of itself. One that only the kernel can
// read says nothing.
func describe(path string) (i Image) {
	f, err := os.Open(path)
	if err != nil {
		return i
	}
	defer f.Close()
	r, err := ext4.NewReader(f)
	if err != nil {
		return i
	}
	for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if release, err := readSmall(r, name); err == nil {
			i.Distribution, i.Release = osRelease(release)
			break
		}
	}
	for _, init := range []string{"/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/init", "/bin/init"} {
		if s, err := r.Lookup(init); err == nil && s.Mode&unix.S_IFMT == unix.S_IFREG && s.Mode&0o111 != 0 {
			i.Init = init
			break
		}
	}
	return i
}

// readSmall reads a file of at most 64 KiB.
func readSmall(r *ext4.Reader, name string) (string, error) {
	s, err := r.Lookup(name)
	if err != nil {
		return "", err
	}
	if s.Mode&unix.S_IFMT != unix.S_IFREG || s.Size > 64<<10 {
		return "", fmt.Errorf("%s is no small file", name)
	}
	b, err := io.ReadAll(r.Content(s))
	return string(b), err
}

// osRelease returns what an os-release file calls the distribution and its release.
func osRelease(text string) (id, release string) {
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		fields[name] = strings.Trim(value, `"'`)
	}
	if release = fields["VERSION_CODENAME"]; release == "" {
		release = fields["VERSION_ID"]
	}
	return fields["ID"], release
}

// explain makes an error of an import one for a person.
func (in Import) explain(ctx context.Context, d *Draft, err error) error {
	kind, hint := errs.KindOf(err), errs.HintOf(err)
	switch {
	case ctx.Err() != nil:
		return err
	case isFull(err):
		kind, hint = errs.Unavailable, "make room in "+filepath.Dir(d.Dir)
	case errors.Is(err, ext4.ErrFull) && in.Bytes > 0:
		kind, hint = errs.Invalid, "give it a larger --size than "+units.BytesSize(float64(in.Bytes))
	case errors.Is(err, ext4.ErrFull):
		kind = errs.Invalid
	case errors.Is(err, os.ErrPermission):
		kind = errs.Invalid
	}
	return errs.New(kind, "can't make image %s", d.name).Because(err).Try("%s", hint)
}
