package tree

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// ErrHostile is returned for an archive that no Pack made: it names something outside the
// tree, or holds what can't be unpacked.
var ErrHostile = errors.New("the archive is not a plain tree")

// Options say how to unpack.
type Options struct {
	Direct   bool          // write large files past the page cache, where the filesystem can
	SetID    bool          // keep set-user-id and set-group-id bits; never for what a guest sent
	Progress func(n int64) // told of the bytes of file contents as they arrive; may be nil
}

// Target applies the rules of cp: a tree whose last name is base, copied to name, goes
// inside name if that is a directory, else becomes name itself, whose parent must exist.
// A base of "." means the contents. Symbolic links in name are followed, one at the
// resulting place is not.
func Target(name, base string) (string, error) {
	if base == "" || base == ".." || strings.ContainsAny(base, "/\x00") {
		return "", fmt.Errorf("%q: not a file name", base)
	}
	fi, err := os.Stat(name)
	switch {
	case err == nil && fi.IsDir():
		return filepath.Join(name, base), nil
	case err == nil:
		if strings.HasSuffix(name, "/") {
			return "", &fs.PathError{Op: "copy to", Path: name, Err: errors.New("not a directory")}
		}
		return filepath.EvalSymlinks(name)
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	clean := filepath.Clean(name)
	if _, err := os.Stat(filepath.Dir(clean)); err != nil {
		return "", err
	}
	if strings.HasSuffix(name, "/") {
		clean += "/" // only a directory may come to be there
	}
	return clean, nil
}

// Unpack reads a tar stream of Pack's to its end marker, not beyond, and makes dst of its
// root entry: a file is replaced, a directory is merged into one that is there. The parent
// of dst must exist. A file gets its name once it is complete. After an error dst may hold
// a part of the tree; nothing outside dst is ever touched.
func Unpack(r io.Reader, dst string, o Options) error {
	tr := tar.NewReader(untilMarker{r})
	hdr, err := tr.Next()
	if err != nil {
		return readError(err)
	}
	if path.Clean(hdr.Name) != "." {
		return fmt.Errorf("%w: it begins with %q", ErrHostile, hdr.Name)
	}
	clean := filepath.Clean(dst)
	parent, err := os.OpenRoot(filepath.Dir(clean))
	if err != nil {
		return err
	}
	defer parent.Close()
	base := filepath.Base(clean)

	u := &unpacker{tar: tr, opt: o, temp: ".banger-" + rand.Text(), buf: make([]byte, copyBuffer)}
	switch hdr.Typeflag {
	case tar.TypeReg:
		if strings.HasSuffix(dst, "/") {
			return &fs.PathError{Op: "copy to", Path: dst, Err: errors.New("no such directory")}
		}
		u.root = parent
		if err := u.file(base, hdr); err != nil {
			return err
		}
		if _, err := tr.Next(); err != io.EOF {
			return fmt.Errorf("%w: something follows its only file", ErrHostile)
		}
		return nil
	case tar.TypeDir:
		return u.tree(parent, base, hdr)
	}
	return fmt.Errorf("%w: its root is no file or directory", ErrHostile)
}

// unpacker writes below root only, through os.Root: the kernel resolves each name
// relative to an open directory, and a link that leads outside is an error.
type unpacker struct {
	root *os.Root
	tar  *tar.Reader
	opt  Options
	temp string // name of a file in the making, beside its final name
	buf  []byte
	dirs []dir // made here; they get their modes and times last
}

type dir struct {
	name  string
	mode  fs.FileMode
	mtime time.Time
}

func (u *unpacker) tree(parent *os.Root, base string, hdr *tar.Header) error {
	made, err := mkdir(parent, base)
	if err != nil {
		return err
	}
	if u.root, err = parent.OpenRoot(base); err != nil {
		return err
	}
	defer u.root.Close()
	if made {
		u.dirs = append(u.dirs, dir{".", u.mode(hdr), hdr.ModTime})
	}
	for {
		hdr, err := u.tar.Next()
		if err == io.EOF {
			return u.finishDirs()
		}
		if err != nil {
			return readError(err)
		}
		if err := u.entry(hdr); err != nil {
			return err
		}
	}
}

func (u *unpacker) entry(hdr *tar.Header) error {
	name, err := local(hdr.Name)
	if err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		made, err := mkdir(u.root, name)
		if made {
			u.dirs = append(u.dirs, dir{name, u.mode(hdr), hdr.ModTime})
		}
		return err
	case tar.TypeReg:
		return u.file(name, hdr)
	case tar.TypeSymlink:
		return u.place(name, func(temp string) error { return u.root.Symlink(hdr.Linkname, temp) })
	case tar.TypeLink:
		old, err := local(hdr.Linkname)
		if err != nil {
			return err
		}
		return u.place(name, func(temp string) error { return u.root.Link(old, temp) })
	}
	return fmt.Errorf("%w: %q is of kind %q", ErrHostile, hdr.Name, hdr.Typeflag)
}

// local turns an entry's name into one below the root, or refuses it.
func local(name string) (string, error) {
	trimmed := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	if trimmed == "" || trimmed == "." || trimmed != path.Clean(trimmed) || !filepath.IsLocal(trimmed) {
		return "", fmt.Errorf("%w: it names %q", ErrHostile, name)
	}
	return trimmed, nil
}

// mkdir makes a directory that its owner can fill, and tells whether it was not there.
func mkdir(root *os.Root, name string) (made bool, err error) {
	err = root.Mkdir(name, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err == nil, err
	}
	fi, err := root.Lstat(name)
	if err == nil && !fi.IsDir() {
		err = &fs.PathError{Op: "make directory", Path: name, Err: errors.New("something else is there")}
	}
	return false, err
}

// place makes something under a temporary name and renames it to name.
func (u *unpacker) place(name string, make func(temp string) error) error {
	temp := path.Join(path.Dir(name), u.temp)
	if err := make(temp); err != nil {
		return err
	}
	err := u.root.Rename(temp, name)
	// The kernel renames nothing where both are links to one inode.
	if rerr := u.root.Remove(temp); err == nil && rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = rerr
	}
	return err
}

func (u *unpacker) file(name string, hdr *tar.Header) error {
	return u.place(name, func(temp string) error {
		f, err := u.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		err = u.fill(f, hdr)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = u.root.Chtimes(temp, hdr.ModTime, hdr.ModTime)
		}
		if err != nil {
			u.root.Remove(temp)
		}
		return err
	})
}

func (u *unpacker) fill(f *os.File, hdr *tar.Header) error {
	if hdr.Size >= streamed {
		if err := stream(f, u.tar, hdr.Size, u.opt.Direct, u.opt.Progress); err != nil {
			return err
		}
		return f.Chmod(u.mode(hdr))
	}
	for left := hdr.Size; left > 0; {
		buf := u.buf[:min(left, int64(len(u.buf)))]
		if _, err := io.ReadFull(u.tar, buf); err != nil {
			return readError(err)
		}
		if _, err := f.Write(buf); err != nil {
			return err
		}
		left -= int64(len(buf))
		if u.opt.Progress != nil {
			u.opt.Progress(int64(len(buf)))
		}
	}
	return f.Chmod(u.mode(hdr))
}

// finishDirs gives the new directories their modes and times, children first.
func (u *unpacker) finishDirs() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		if err := u.root.Chmod(d.name, d.mode); err != nil {
			return err
		}
		if err := u.root.Chtimes(d.name, d.mtime, d.mtime); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) mode(hdr *tar.Header) fs.FileMode {
	m := hdr.FileInfo().Mode()
	keep := fs.ModePerm | fs.ModeSticky
	if u.opt.SetID {
		keep |= fs.ModeSetuid | fs.ModeSetgid
	}
	return m & keep
}

// untilMarker makes a stream's end an error: the reader of an archive stops at the end
// marker, and one that is cut off between two entries would look whole without this.
type untilMarker struct{ r io.Reader }

func (u untilMarker) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// readError explains an error of the archive's bytes.
func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the copy was cut off: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read the archive: %w", err)
}
