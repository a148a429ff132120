package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// Open opens what lies at path: an OCI layout, or a file of any of the formats. scratch is a
// directory for what has to be unpacked first.
func Open(path, scratch string, c Choice) (*Source, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "there is no %s", path)
	}
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return openLayout(path, c)
	}
	if !info.Mode().IsRegular() { // a pipe would be waited for
		return nil, refuse("%s is neither a file nor a directory", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	s, err := openFile(f, filepath.Base(path), scratch, c)
	return closing(s, err, f.Close)
}

// closing has the source close what it reads from in the end; at once if there is none.
func closing(s *Source, err error, end func() error) (*Source, error) {
	if err != nil {
		end()
		return nil, err
	}
	s.OnClose(end)
	return s, nil
}

func openLayout(path string, c Choice) (*Source, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	in := unpacked{root}
	r, _, err := in.Open("oci-layout")
	if err != nil {
		root.Close()
		return nil, refuse("%s is a directory, but no OCI layout: it has no file oci-layout", path).(*errs.Error).
			Try("to import it as a root filesystem, give a tar of it: tar -C %s -c . | banger image import -", path)
	}
	r.Close()
	s, err := layout(in, c)
	return closing(s, err, root.Close)
}

// openFile opens a file that can be sought in.
func openFile(f *os.File, name, scratch string, c Choice) (*Source, error) {
	head := make([]byte, headBytes)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	head = head[:n]
	if isExt4(head) {
		return &Source{Kind: Ext4, Raw: f}, nil
	}
	if _, ok := firstName(head); !ok { // compressed, or nothing we know
		return OpenStream(f, name, scratch, c)
	}
	a, ok, err := openArchive(f)
	if err != nil {
		return nil, err
	}
	if ok && a.has("oci-layout") && a.has("index.json") {
		return layout(a, c)
	}
	if ok && a.ofDocker() {
		return docker(a, c)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &Source{Kind: Tar, Layers: []Layer{{Name: name, Size: info.Size(), Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(f, 0, info.Size())), nil
	}}}}, nil
}

// ofDocker tells a Docker archive from a root filesystem that happens to have a manifest.json.
func (a *archived) ofDocker() bool {
	b, err := document(a, "manifest.json", "")
	var images []dockerImage
	return err == nil && json.Unmarshal(b, &images) == nil && len(images) > 0 && images[0].Config != ""
}

const headBytes = 64 << 10

// OpenStream opens what r gives, which is read once. What needs to be sought in is unpacked
// into scratch first. r must last as long as the source.
func OpenStream(r io.Reader, name, scratch string, c Choice) (*Source, error) {
	plain, err := decompress(r)
	if err != nil {
		return nil, err
	}
	tape := bufio.NewReaderSize(plain, headBytes)
	head, err := tape.Peek(headBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		plain.Close()
		return nil, err
	}
	first, ok := firstName(head)
	switch {
	case !ok && !isExt4(head):
		plain.Close()
		return nil, errs.New(errs.Invalid, "%s is %s", name, describe(head)).
			Try("give an OCI layout or archive, a Docker archive, a tar of a root filesystem or an ext4 filesystem")
	case isExt4(head) || packedName.MatchString(first):
		f, err := spool(tape, scratch)
		plain.Close()
		if err != nil {
			return nil, err
		}
		s, err := openFile(f, name, scratch, c)
		return closing(s, err, f.Close)
	}
	s := &Source{Kind: Tar, Layers: []Layer{{Name: name, Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(tape), nil }}}}
	return closing(s, nil, plain.Close)
}

// packedName matches the names that archives of images begin with, whatever tool made them.
var packedName = regexp.MustCompile(`^(blobs(/.*)?|oci-layout|repositories|[^/]+\.(json|tar|tar\.gz)|(sha256:)?[0-9a-f]{64}(/.*)?)$`)

// firstName returns the name of the first file of a tar archive that begins with head, the
// directory that the archive is of not counted. It returns false if that is no archive.
func firstName(head []byte) (string, bool) {
	if len(head) < 512 {
		return "", false
	}
	for headers := tar.NewReader(bytes.NewReader(head)); ; {
		hdr, err := headers.Next()
		if errors.Is(err, io.EOF) {
			return ".", true
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			// A header that is damaged, or longer than head, is told of by who reads it all.
			return ".", bytes.Equal(head[257:262], []byte("ustar"))
		}
		if name := path.Clean(hdr.Name); name != "." || hdr.Typeflag != tar.TypeDir {
			return name, true
		}
	}
}

func isExt4(head []byte) bool {
	const at = 1024 + 0x38
	return len(head) >= at+2 && binary.LittleEndian.Uint16(head[at:]) == 0xEF53
}

// describe says what a file seems to be that can't be imported.
func describe(head []byte) string {
	switch {
	case len(head) == 0:
		return "empty"
	case bytes.HasPrefix(head, []byte("QFI\xfb")):
		return "a qcow2 disk, which can't be imported as it is"
	case bytes.HasPrefix(head, []byte("hsqs")):
		return "a squashfs filesystem, which can't be imported"
	case len(head) >= 512 && head[510] == 0x55 && head[511] == 0xaa:
		return "a disk with partitions, not a filesystem"
	}
	return "nothing that can be imported: neither an archive nor a filesystem"
}

// spool writes r to a file without a name, leaving out what is only zeros.
func spool(r io.Reader, scratch string) (*os.File, error) {
	fd, err := unix.Open(scratch, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	var f *os.File
	if err == nil {
		f = os.NewFile(uintptr(fd), "scratch")
	} else if f, err = os.CreateTemp(scratch, "spool-"); err != nil { // the filesystem has no such files
		return nil, err
	} else if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	buf, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	size := int64(0)
	for {
		n, err := fill(r, buf)
		if !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := f.WriteAt(buf[:n], size); err != nil {
				return nil, errors.Join(err, f.Close())
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
