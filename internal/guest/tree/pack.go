// Package tree copies a file or a directory tree through a tar stream. Both ends of the
// control channel use it, so it must survive an archive made by a hostile guest: Unpack
// touches nothing outside its destination, whatever the archive says. It knows nothing of
// the channel.
//
// The root entry of an archive is named ".", its children "./a", "./a/b". Modes, times of
// files and directories, symbolic links, and hard links within the tree are kept; owners
// are not: what is unpacked belongs to whoever unpacks.
package tree

import (
	"archive/tar"
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// copyBuffer is the size of one read or write of a small file's contents, in bytes.
const copyBuffer = 128 << 10

// Skipped is the error of a copy that is whole except for the entries it names, which are
// neither files, directories nor links, or went away while they were read.
type Skipped []string

func (s Skipped) Error() string {
	const show = 5
	if len(s) <= show {
		return "skipped " + strings.Join(s, ", ")
	}
	return fmt.Sprintf("skipped %s and %d more", strings.Join(s[:show], ", "), len(s)-show)
}

// Info describes what Pack would send.
type Info struct {
	IsDir bool
	Bytes int64 // in regular files; those linked several times count once
}

// Stat walks the tree at name, following name itself if it is a symbolic link.
func Stat(name string) (Info, error) {
	root, err := filepath.EvalSymlinks(name)
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return Info{}, fmt.Errorf("%s: %w", pe.Path, pe.Err) // without the name of a system call
	}
	if err != nil {
		return Info{}, err
	}
	var info Info
	seen := map[inode]string{}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if p == root {
				return err
			}
			return nil // Pack will say so
		}
		if p == root {
			info.IsDir = d.IsDir()
		}
		if !d.Type().IsRegular() {
			return nil
		}
		if fi, err := d.Info(); err == nil && firstLink(seen, fi, p) == "" {
			info.Bytes += fi.Size()
		}
		return nil
	})
	return info, err
}

// Pack writes the file or tree at name as a tar stream, following name itself if it is a
// symbolic link. With direct large files are read past the page cache, where the
// filesystem can. progress, unless nil, is told of the bytes of file contents as they go.
// An error of type Skipped means that the stream is whole.
func Pack(w io.Writer, name string, direct bool, progress func(n int64)) error {
	root, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	if fi, err := os.Lstat(root); err != nil {
		return err
	} else if t := fi.Mode().Type(); t != 0 && t != fs.ModeDir {
		return fmt.Errorf("%s: not a file or directory", name)
	}
	out := bufio.NewWriterSize(w, 64<<10)
	p := &packer{root: root, tar: tar.NewWriter(out), seen: map[inode]string{}, progress: progress, direct: direct, buf: make([]byte, copyBuffer)}
	if err := filepath.WalkDir(root, p.visit); err != nil {
		return err
	}
	if err := p.tar.Close(); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if len(p.skipped) > 0 {
		return p.skipped
	}
	return nil
}

type packer struct {
	root     string
	tar      *tar.Writer
	seen     map[inode]string
	skipped  Skipped
	progress func(int64)
	direct   bool
	buf      []byte
}

func (p *packer) visit(name string, d fs.DirEntry, err error) error {
	if err == nil {
		err = p.add(name, d)
	}
	// What vanishes or can't be opened inside the tree does not end the copy of the rest.
	if pe, ok := errors.AsType[*fs.PathError](err); ok && name != p.root {
		p.skip(name, pe.Err.Error())
		if d != nil && d.IsDir() {
			return fs.SkipDir
		}
		return nil
	}
	return err
}

func (p *packer) skip(name, why string) {
	rel, _ := filepath.Rel(p.root, name)
	p.skipped = append(p.skipped, rel+" ("+why+")")
}

func (p *packer) add(name string, d fs.DirEntry) error {
	fi, err := d.Info()
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(p.root, name)
	if err != nil {
		return err
	}
	hdr := &tar.Header{Name: entryName(rel), Mode: unixMode(fi.Mode()), ModTime: fi.ModTime(), Format: tar.FormatPAX}
	switch fi.Mode().Type() {
	case fs.ModeDir:
		hdr.Typeflag, hdr.Name = tar.TypeDir, hdr.Name+"/"
	case fs.ModeSymlink:
		hdr.Typeflag = tar.TypeSymlink
		if hdr.Linkname, err = os.Readlink(name); err != nil {
			return err
		}
	case 0:
		return p.addFile(name, hdr, fi)
	default:
		p.skip(name, "not a file, directory or link")
		return nil
	}
	return p.tar.WriteHeader(hdr)
}

func (p *packer) addFile(name string, hdr *tar.Header, fi fs.FileInfo) error {
	if first := firstLink(p.seen, fi, hdr.Name); first != "" {
		hdr.Typeflag, hdr.Linkname = tar.TypeLink, first
		return p.tar.WriteHeader(hdr)
	}
	// The name may have become something else since it was listed.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err = f.Stat(); err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		p.skip(name, "changed while it was read")
		return nil
	}
	hdr.Typeflag, hdr.Size = tar.TypeReg, fi.Size()
	if err := p.tar.WriteHeader(hdr); err != nil {
		return err
	}
	if hdr.Size < streamed {
		return p.copy(name, &plain{f, p.buf}, hdr.Size)
	}
	r, stop, err := readAhead(f, p.direct)
	if err != nil {
		return err
	}
	defer stop()
	return p.copy(name, r, hdr.Size)
}

// contents are those of a file, part by part; each is valid until the next is asked for.
type contents interface {
	next() ([]byte, error)
}

// plain are contents that are read when they are asked for.
type plain struct {
	f   *os.File
	buf []byte
}

func (p *plain) next() ([]byte, error) {
	n, err := p.f.Read(p.buf)
	return p.buf[:n], err
}

// copy sends exactly size bytes: a file that grows is cut, one that shrinks is filled up
// with zeros and reported.
func (p *packer) copy(name string, from contents, size int64) error {
	for size > 0 {
		part, err := from.next()
		if err == io.EOF {
			p.skip(name, "shrank while it was read")
			return p.fill(size)
		}
		if err != nil {
			return fmt.Errorf("read: %w", cmp.Or(errors.Unwrap(err), err)) // no PathError: the entry has begun
		}
		part = part[:min(size, int64(len(part)))]
		if err := p.send(part); err != nil {
			return err
		}
		size -= int64(len(part))
	}
	return nil
}

// fill sends size zeros.
func (p *packer) fill(size int64) error {
	clear(p.buf)
	for ; size > 0; size -= min(size, int64(len(p.buf))) {
		if err := p.send(p.buf[:min(size, int64(len(p.buf)))]); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) send(part []byte) error {
	if _, err := p.tar.Write(part); err != nil {
		return err
	}
	if p.progress != nil {
		p.progress(int64(len(part)))
	}
	return nil
}

type inode struct{ dev, ino uint64 }

// firstLink returns the name under which fi's inode was seen before, or "" after noting
// name for it.
func firstLink(seen map[inode]string, fi fs.FileInfo, name string) string {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Nlink < 2 {
		return ""
	}
	key := inode{uint64(st.Dev), st.Ino}
	if first, ok := seen[key]; ok {
		return first
	}
	seen[key] = name
	return ""
}

func entryName(rel string) string {
	if rel == "." {
		return "."
	}
	return "./" + path.Clean(filepath.ToSlash(rel))
}

// unixMode gives the twelve permission bits as the kernel has them.
func unixMode(m fs.FileMode) int64 {
	bits := int64(m.Perm())
	if m&fs.ModeSetuid != 0 {
		bits |= syscall.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		bits |= syscall.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		bits |= syscall.S_ISVTX
	}
	return bits
}
