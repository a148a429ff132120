package runtimedir

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"banger/internal/image/shelf"
)

const (
	// window bounds what an archive makes its reader keep in memory, in bytes.
	window = 128 << 20

	// hole is the least run of zeros, in bytes, for which a file gets no blocks.
	hole = 64 << 10

	// chunk is how much is added up and written at once, in bytes: the CPU's cache has room for it,
	// without which all of this takes a third longer.
	chunk = 256 << 10
)

// errPacked is what is wrong with an archive, whoever sent it.
type errPacked struct{ error }

func (e errPacked) Unwrap() error { return e.error }

func packed(format string, args ...any) error { return errPacked{fmt.Errorf(format, args...)} }

// unpack writes the bundle in an archive to the empty directory dir, all but its record,
// which it returns: with that a directory becomes a bundle. accept may refuse the record,
// which comes first. Every file is what the record says when unpack returns nil.
func unpack(archive io.Reader, dir string, accept func(Record) error, progress func(done, total int64)) (Record, error) {
	z, err := zstd.NewReader(archive, zstd.WithDecoderMaxWindow(window), zstd.WithDecoderMaxMemory(window))
	if err != nil {
		return Record{}, err
	}
	defer z.Close()
	return unpackTar(z, dir, accept, progress)
}

// unpackTar is unpack for what has been decompressed.
func unpackTar(tarball io.Reader, dir string, accept func(Record) error, progress func(done, total int64)) (Record, error) {
	in := tar.NewReader(tarball)
	record, err := unpackRecord(in)
	if err != nil {
		return record, err
	}
	if err := accept(record); err != nil {
		return record, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return record, err
	}
	defer root.Close()
	u := unpacking{root: root, files: record.Files(), progress: progress}
	for _, f := range u.files {
		u.total += f.Bytes
	}
	if err := u.all(in); err != nil {
		return record, err
	}
	// What follows the end of the tar must be nothing, and is part of what was signed.
	switch n, err := io.Copy(io.Discard, tarball); {
	case err != nil:
		return record, damaged(err)
	case n > maxPadding:
		return record, packed("%d bytes follow its end", n)
	}
	return record, nil
}

// maxPadding bounds the zeros after a tar's end, in bytes.
const maxPadding = 10 << 10

func unpackRecord(in *tar.Reader) (Record, error) {
	h, err := in.Next()
	if err != nil {
		return Record{}, damaged(err)
	}
	if h.Name != recordFile || h.Typeflag != tar.TypeReg || h.Size > maxRecord {
		return Record{}, packed("it does not begin with %s", recordFile)
	}
	b, err := io.ReadAll(in)
	if err != nil {
		return Record{}, damaged(err)
	}
	r, err := parseRecord(b)
	if err != nil {
		return r, packed("its %s can't be used: %w", recordFile, err)
	}
	return r, nil
}

// damaged is what an archive is that can't be read to its end. Where the way it came is at
// fault, its reader says so.
func damaged(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return packed("it ends too early")
	}
	return packed("it is damaged: %w", err)
}

// unpacking is an archive's files on their way into a directory.
type unpacking struct {
	root        *os.Root
	files       map[string]FileRecord // yet to come
	names       []string              // of those that came
	done, total int64
	progress    func(done, total int64)
}

func (u *unpacking) all(in *tar.Reader) error {
	for {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return damaged(err)
		}
		f, known := u.files[h.Name]
		if !known || h.Typeflag != tar.TypeReg || h.Size != f.Bytes {
			return packed("%q in it (type %q, %d bytes) is not what its %s tells of", h.Name, h.Typeflag, h.Size, recordFile)
		}
		delete(u.files, h.Name)
		u.names = append(u.names, h.Name)
		if err := u.file(in, f); err != nil {
			return err
		}
	}
	for name := range u.files {
		return packed("it lacks %s", name)
	}
	// All at the end, when most of it has reached the disk.
	for _, name := range u.names {
		if err := syncFile(u.root, name); err != nil {
			return err
		}
	}
	return nil
}

// syncFile waits until a file is on the disk. That it could not be written there is told to who
// opens it later, too.
func syncFile(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (u *unpacking) file(in io.Reader, f FileRecord) error {
	if err := u.root.MkdirAll(path.Dir(f.Path), 0o755); err != nil {
		return err
	}
	mode, err := strconv.ParseUint(cmp.Or(f.Mode, defaultMode), 8, 32)
	if err != nil {
		return err
	}
	out, err := u.root.OpenFile(f.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = u.copy(out, in, f)
	if err == nil {
		err = out.Chmod(os.FileMode(mode))
	}
	return errors.Join(err, out.Close())
}

// copy writes a file's content, with holes for its zeros.
func (u *unpacking) copy(out *os.File, in io.Reader, f FileRecord) error {
	sum := sha256.New()
	buf, zeros := make([]byte, chunk), make([]byte, hole)
	for at := int64(0); at < f.Bytes; {
		n, err := io.ReadFull(in, buf[:min(int64(len(buf)), f.Bytes-at)])
		if err != nil {
			return damaged(err)
		}
		sum.Write(buf[:n])
		if err := writeSparse(out, buf[:n], zeros, at); err != nil {
			return err
		}
		// The disk is at it while more comes. That is a wish: what matters is the sync.
		_ = unix.SyncFileRange(int(out.Fd()), at, int64(n), unix.SYNC_FILE_RANGE_WRITE)
		at += int64(n)
		u.done += int64(n)
		u.progress(u.done, u.total)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != f.SHA256 {
		return packed("%s in it has the SHA-256 %s, and must have %s", f.Path, got, f.SHA256)
	}
	return out.Truncate(f.Bytes)
}

// writeSparse writes b at that offset of the file, and leaves out runs of zeros.
func writeSparse(out *os.File, b, zeros []byte, at int64) error {
	for len(b) > 0 {
		n := 0
		for n < len(b) && !bytes.Equal(b[n:min(n+hole, len(b))], zeros[:min(hole, len(b)-n)]) {
			n = min(n+hole, len(b))
		}
		if n > 0 {
			if _, err := out.WriteAt(b[:n], at); err != nil {
				return err
			}
		}
		n = min(n+hole, len(b)) // the zeros
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// syncTree makes directories as durable as the files in them.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return shelf.SyncDir(path)
	})
}
