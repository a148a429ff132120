package oci

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/image/ext4"
)

// flattener applies layers, the lowest first, to a filesystem in the making. Names are
// resolved in the image alone: nothing of an image is ever a path of the host's.
type flattener struct {
	tree   *tree
	out    *ext4.Writer
	layer  uint16 // counts from 1
	whole  bool   // a root filesystem, not layers: names that look like whiteouts are names
	sparse int64  // bytes that sparse files may still unfold to
	steps  int    // from directory to directory that names may still take
}

// maxSparse bounds what sparse files unfold to in all: their zeros come from nowhere, and
// have to be looked at.
const maxSparse = 32 << 30

// maxSteps bounds the way that names take through directories and symbolic links, in all.
const maxSteps = 200_000_000

func newFlattener(out *ext4.Writer, whole bool) (*flattener, error) {
	f := &flattener{tree: newTree(), out: out, whole: whole, sparse: maxSparse, steps: maxSteps}
	at, err := f.tree.make(top, "lost+found")
	if err != nil {
		return nil, err
	}
	n := f.tree.node(at)
	n.kind, n.inode = unix.S_IFDIR, ext4.LostFound
	return f, out.Link(ext4.LostFound)
}

// apply applies one layer, an uncompressed tar.
func (f *flattener) apply(ctx context.Context, r io.Reader) error {
	f.layer++
	for files := tar.NewReader(r); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, tar.ErrInsecurePath) { // by GODEBUG; entry sees to it
			err = nil
		}
		if err != nil {
			return tarError(err)
		}
		if err := f.entry(hdr, files); err != nil {
			return explainEntry(hdr.Name, err)
		}
	}
}

func tarError(err error) error {
	switch {
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return errs.New(errs.Invalid, "its tar archive is damaged").Because(err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errs.New(errs.Invalid, "its tar archive ends too early")
	}
	return err
}

// explainEntry says which file an error is about, unless it is about all of them.
func explainEntry(name string, err error) error {
	switch {
	case errors.Is(err, ext4.ErrFull):
		return err
	case errors.Is(err, ext4.ErrLinks), errors.Is(err, ext4.ErrXattrs):
		err = errs.New(errs.Invalid, "%v", err)
	}
	if e, ok := errors.AsType[*errs.Error](tarError(err)); ok {
		if len(name) > 200 {
			name = name[:200] + "…"
		}
		return errs.New(e.Kind, "the file %q can't be taken over", name).Because(e).Try("%s", e.Hint)
	}
	return err
}

func refuse(format string, args ...any) error { return errs.New(errs.Invalid, format, args...) }

// split returns the elements of a name. One that leads upwards is refused, as no honest
// archive has any.
func split(name string) ([]string, error) {
	var out []string
	for _, part := range strings.Split(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return nil, refuse("its name leads out of its directory")
		case len(part) > 255:
			return nil, refuse("its name has %d bytes, and no filesystem holds more than 255", len(part))
		case strings.IndexByte(part, 0) >= 0:
			return nil, refuse("its name has a NUL byte")
		default:
			out = append(out, part)
		}
	}
	return out, nil
}

func (f *flattener) entry(hdr *tar.Header, r io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	parts, err := split(hdr.Name)
	if err != nil {
		return err
	}
	attr, err := f.attr(hdr)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if hdr.Typeflag != tar.TypeDir {
			return refuse("the root of a filesystem is a directory")
		}
		f.tree.node(top).layer = f.layer
		return f.out.SetAttr(ext4.Top, attr)
	}
	base, above := parts[len(parts)-1], parts[:len(parts)-1]
	if white, ok := strings.CutPrefix(base, ".wh."); ok && !f.whole {
		return f.whiteout(above, white)
	}
	parent, err := f.walk(above, &attr)
	if err != nil {
		return err
	}
	at, err := f.tree.make(parent, base)
	if err != nil {
		return err
	}
	if err := f.put(at, hdr, attr, r); err != nil {
		return err
	}
	f.tree.node(at).layer = f.layer
	return nil
}

// put makes the node at what the header says.
func (f *flattener) put(at int32, hdr *tar.Header, attr ext4.Attr, r io.Reader) error {
	n := f.tree.node(at)
	var ino ext4.Inode
	var err error
	switch kind := attr.Mode & unix.S_IFMT; {
	case hdr.Typeflag == tar.TypeLink:
		return f.link(at, hdr.Linkname)
	case kind == unix.S_IFDIR && n.kind == unix.S_IFDIR:
		return f.out.SetAttr(n.inode, attr)
	default:
		if err := f.remove(at); err != nil {
			return err
		}
		switch kind {
		case unix.S_IFREG:
			if err := f.allow(hdr); err != nil {
				return err
			}
			ino, err = f.out.AddFile(attr, r)
		case unix.S_IFLNK:
			ino, err = f.symlink(n, attr, hdr.Linkname)
		default:
			ino, err = f.out.Add(attr)
		}
	}
	if err != nil {
		return err
	}
	n.inode, n.kind = ino, uint16(attr.Mode&unix.S_IFMT)
	return f.out.Link(ino)
}

// allow refuses files whose size can't be true, before anything is read.
func (f *flattener) allow(hdr *tar.Header) error {
	sparse := hdr.Typeflag == tar.TypeGNUSparse
	for key := range hdr.PAXRecords {
		sparse = sparse || strings.HasPrefix(key, "GNU.sparse.")
	}
	if sparse {
		if f.sparse -= hdr.Size; f.sparse < 0 {
			return refuse("sparse files unfold to more than %d GiB", maxSparse>>30)
		}
	}
	return nil
}

func (f *flattener) symlink(n *node, attr ext4.Attr, target string) (ino ext4.Inode, err error) {
	if target == "" || len(target) >= unix.PathMax || strings.IndexByte(target, 0) >= 0 {
		return 0, refuse("a symbolic link can't have a target of %d bytes", len(target))
	}
	if string(f.tree.string(n.target)) != target { // a higher layer often has the same
		if n.target, err = f.tree.keep(target); err != nil {
			return 0, err
		}
	}
	return f.out.AddSymlink(attr, target)
}

// link gives a file another name. Its own attributes stay.
func (f *flattener) link(at int32, target string) error {
	parts, err := split(target)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return refuse("a hard link can't lead to a directory")
	}
	parent, err := f.walk(parts[:len(parts)-1], nil)
	if err != nil {
		return err
	}
	to := top
	if parent != nowhere {
		to = f.tree.find(parent, parts[len(parts)-1])
	}
	switch {
	case to == top || f.tree.node(to).kind == gone:
		return refuse("it is a hard link to %q, which is not there", target)
	case f.tree.node(to).kind == unix.S_IFDIR:
		return refuse("a hard link can't lead to a directory")
	}
	n, old := f.tree.node(at), *f.tree.node(to)
	if n.kind != gone && n.inode == old.inode {
		return nil
	}
	if err := f.out.Link(old.inode); err != nil {
		return err
	}
	if err := f.remove(at); err != nil {
		return err
	}
	n.inode, n.kind, n.target = old.inode, old.kind, old.target
	return nil
}

const nowhere int32 = -1

// walk returns the directory that parts lead to from the root, through symbolic links as the
// image's own programs would see them. Directories that are not there are made, at the time of
// the entry that wants them; with no such entry, the answer is nowhere.
func (f *flattener) walk(parts []string, wanted *ext4.Attr) (int32, error) {
	at, links := top, 0
	for len(parts) > 0 {
		part := parts[0]
		parts = parts[1:]
		if f.steps--; f.steps < 0 {
			return 0, refuse("its symbolic links take too long to follow")
		}
		switch part {
		case "", ".":
			continue
		case "..":
			at = f.tree.node(at).parent // the root's is itself
			continue
		}
		next := f.tree.find(at, part)
		if next == top || f.tree.node(next).kind == gone {
			if wanted == nil {
				return nowhere, nil
			}
			var err error
			if next, err = f.imply(at, part, wanted.MTime); err != nil {
				return 0, err
			}
		}
		n := f.tree.node(next)
		switch n.kind {
		case unix.S_IFDIR:
			at = next
			if wanted != nil {
				n.layer = f.layer
			}
		case unix.S_IFLNK:
			if links++; links > 40 {
				return 0, refuse("symbolic links lead around in a circle")
			}
			target := string(f.tree.string(n.target))
			if strings.HasPrefix(target, "/") {
				at = top
			}
			parts = append(strings.Split(target, "/"), parts...)
		default:
			if wanted == nil {
				return nowhere, nil
			}
			return 0, refuse("%q, above it, is not a directory", f.tree.path(next))
		}
	}
	return at, nil
}

// imply makes a directory that no entry has told of.
func (f *flattener) imply(parent int32, name string, mtime time.Time) (int32, error) {
	if len(name) > 255 {
		return 0, refuse("a symbolic link above it has a name of %d bytes, and no filesystem holds more than 255", len(name))
	}
	at, err := f.tree.make(parent, name)
	if err != nil {
		return 0, err
	}
	ino, err := f.out.Add(ext4.Attr{Mode: unix.S_IFDIR | 0o755, MTime: mtime})
	if err != nil {
		return 0, err
	}
	n := f.tree.node(at)
	n.inode, n.kind, n.cleared = ino, unix.S_IFDIR, 0
	return at, f.out.Link(ino)
}

// whiteout removes what lower layers have put at a name; all in the directory, for the
// opaque marker. Names that begin like it have been aufs's own.
func (f *flattener) whiteout(above []string, name string) error {
	if name == "" || name == "." || name == ".." {
		return refuse("there is no file of the name %q to remove", name)
	}
	parent, err := f.walk(above, nil)
	if err != nil || parent == nowhere {
		return err
	}
	switch {
	case name == ".wh..opq":
		return f.clear(parent)
	case strings.HasPrefix(name, ".wh."):
		return nil
	}
	at := f.tree.find(parent, name)
	if at == top || f.tree.node(at).kind == gone {
		return nil
	}
	if n := f.tree.node(at); n.layer < f.layer {
		return f.remove(at)
	} else if n.kind == unix.S_IFDIR {
		return f.clear(at)
	}
	return nil
}

// clear removes what lower layers have put into a directory. Once is enough for a layer.
func (f *flattener) clear(dir int32) error {
	if d := f.tree.node(dir); d.cleared == f.layer {
		return nil
	} else {
		d.cleared = f.layer
	}
	for at, n := range f.tree.children(dir) {
		var err error
		switch {
		case n.layer < f.layer:
			err = f.remove(at)
		case n.kind == unix.S_IFDIR:
			err = f.clear(at)
		}
		if err != nil {
			return err
		}
	}
	f.tree.prune(dir)
	return nil
}

// remove takes a file away, and all that is in it.
func (f *flattener) remove(at int32) error {
	n := f.tree.node(at)
	if n.kind == gone {
		return nil
	}
	if n.kind == unix.S_IFDIR {
		for child := range f.tree.children(at) {
			if err := f.remove(child); err != nil {
				return err
			}
		}
		f.tree.prune(at)
	}
	n.kind = gone
	return f.out.Unlink(n.inode)
}

const xattrRecord = "SCHILY.xattr."

// attr returns the attributes that a header tells. A hard link has none that matter.
func (f *flattener) attr(hdr *tar.Header) (ext4.Attr, error) {
	a := ext4.Attr{Mode: uint32(hdr.Mode) & 0o7777, MTime: hdr.ModTime}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, tar.TypeLink:
		a.Mode |= unix.S_IFREG
	case tar.TypeDir:
		a.Mode |= unix.S_IFDIR
	case tar.TypeSymlink:
		a.Mode = unix.S_IFLNK | 0o777 // Linux knows no other
	case tar.TypeChar:
		a.Mode |= unix.S_IFCHR
	case tar.TypeBlock:
		a.Mode |= unix.S_IFBLK
	case tar.TypeFifo:
		a.Mode |= unix.S_IFIFO
	default:
		return a, refuse("it is of the type %q, which no filesystem has", hdr.Typeflag)
	}
	if hdr.Uid < 0 || hdr.Uid > math.MaxUint32-1 || hdr.Gid < 0 || hdr.Gid > math.MaxUint32-1 {
		return a, refuse("it belongs to %d:%d, which are no user and group", hdr.Uid, hdr.Gid)
	}
	a.UID, a.GID = uint32(hdr.Uid), uint32(hdr.Gid)
	if t := a.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		// The kernel's limits: 12 and 20 bits.
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return a, refuse("%d:%d is no number of a device", hdr.Devmajor, hdr.Devminor)
		}
		a.Major, a.Minor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
	}
	for key, value := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrRecord); ok {
			a.Xattrs = append(a.Xattrs, ext4.Xattr{Name: name, Value: []byte(value)})
		}
	}
	return a, nil
}
