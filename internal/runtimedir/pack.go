package runtimedir

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"banger/internal/errs"
)

// Package writes the bundle in dir as one archive, the same bytes for the same bundle. Of the
// artefacts it takes those that only names, or without any all that a build makes unasked.
// It refuses, and names, whatever must not leave this host. errs.Conflict
func Package(ctx context.Context, dir string, only []string, optional func(name string) bool, w io.Writer) error {
	r, err := ReadRecord(dir)
	if err != nil {
		return err
	}
	extra, err := unknown(dir, r.Files())
	if err != nil {
		return err
	}
	for _, p := range extra {
		return errs.New(errs.Conflict, "%s is in the bundle's directory and no part of the bundle%s", filepath.Join(dir, p), kindOf(filepath.Join(dir, p))).
			Try("move it away; `banger runtime verify` lists all such files")
	}
	for _, name := range only {
		if !r.Has(name) {
			return errs.New(errs.NotFound, "the runtime bundle has no %q", name)
		}
	}
	r.Artefacts = slices.DeleteFunc(r.Artefacts, func(a ArtefactRecord) bool {
		switch {
		case strings.HasPrefix(a.Name, keptPrefix):
			return true
		case len(only) > 0:
			return !slices.Contains(only, a.Name)
		}
		return optional(a.Name)
	})
	if len(r.Artefacts) == 0 {
		return errs.New(errs.Unavailable, "the runtime bundle in %s has nothing to pack", dir).Try("make it first: banger runtime build")
	}
	z, err := zstd.NewWriter(w)
	if err != nil {
		return err
	}
	if err := pack(ctx, dir, r, z); err != nil {
		return err
	}
	return z.Close()
}

// pack writes a tar of the files of r in dir. Each must be as r says, and none a secret.
func pack(ctx context.Context, dir string, r Record, w io.Writer) error {
	out := tar.NewWriter(w)
	record, err := r.encode()
	if err == nil {
		err = addEntry(out, recordFile, "0644", int64(len(record)), r.BuiltAt())
	}
	if err == nil {
		_, err = out.Write(record)
	}
	if err != nil {
		return err
	}
	files := r.Files()
	for _, p := range slices.Sorted(maps.Keys(files)) {
		if err := packFile(ctx, out, dir, files[p], r.BuiltAt()); err != nil {
			return err
		}
	}
	return out.Close()
}

func addEntry(out *tar.Writer, name, mode string, bytes int64, at time.Time) error {
	m, err := strconv.ParseInt(mode, 8, 32)
	if err != nil {
		return err
	}
	return out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: m, Size: bytes, ModTime: at, Format: tar.FormatPAX})
}

func packFile(ctx context.Context, out *tar.Writer, dir string, f FileRecord, at time.Time) error {
	path := filepath.Join(dir, filepath.FromSlash(f.Path))
	refuse := func(why string) error {
		return errs.New(errs.Conflict, "%s can't be packed: %s", path, why).Try("banger runtime verify tells of all files")
	}
	if why := stateName(f.Path); why != "" {
		return refuse(why)
	}
	if why := f.problem(ctx, dir, false); why != "" {
		return refuse(why)
	}
	if f.Mode == "" { // in a record of an earlier build
		f.Mode = defaultMode
	}
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := addEntry(out, f.Path, f.Mode, f.Bytes, at); err != nil {
		return err
	}
	sum, scan := sha256.New(), &secrets{}
	n, err := io.Copy(io.MultiWriter(sum, scan, out), readerContext{ctx, io.LimitReader(in, f.Bytes)})
	switch {
	case err != nil:
		return err
	case scan.found != "":
		return refuse(scan.found)
	case n != f.Bytes || hex.EncodeToString(sum.Sum(nil)) != f.SHA256:
		return refuse("it is not what it was when it was made")
	}
	return nil
}

// readerContext ends when its context does.
type readerContext struct {
	ctx context.Context
	r   io.Reader
}

func (r readerContext) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// kindOf says of a file why it must not be packed, after a colon, if its kind is known.
func kindOf(path string) string {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return ""
	case info.Mode()&fs.ModeSocket != 0:
		return ": it is a socket"
	case !info.Mode().IsRegular():
		return ": it is no regular file"
	}
	if why := stateName(path); why != "" {
		return ": " + why
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	scan := &secrets{}
	if _, err := io.Copy(scan, io.LimitReader(f, maxRecord)); err == nil && scan.found != "" {
		return ": " + scan.found
	}
	return ""
}

// stateName tells from a file's name that it belongs to this host, or nothing.
func stateName(path string) string {
	base := filepath.Base(path)
	switch {
	case base == "machine-id" || base == "hostname" || strings.HasPrefix(base, "ssh_host_"):
		return "it is a host's identity"
	case strings.HasSuffix(base, ".sock"):
		return "it is a socket"
	case base == "banger.db" || strings.HasPrefix(base, "banger.db-") || base == "vm.json" || strings.HasSuffix(base, ".lock"):
		return "it is state"
	}
	return ""
}

// secrets looks for private keys in what is written to it, wherever they lie in it: also in
// the filesystem of an image.
type secrets struct {
	at    int64
	tail  []byte // the end of what came, which what is looked for may begin in
	found string
}

const (
	keyBegin    = "-----BEGIN "
	keyLine     = "PRIVATE KEY-----\n"
	maxKeyLine  = len(keyBegin) + len("ENCRYPTED ") + len(keyLine)
	minisignKey = "minisign encrypted secret key\nR"
	keySample   = 24 // characters of base64 by which a key is told from a program that reads them
)

func (s *secrets) Write(p []byte) (int, error) {
	if s.found == "" {
		head := append(s.tail, p[:min(len(p), 2*len(minisignKey)+2*keySample)]...)
		if s.look(head, s.at-int64(len(s.tail))); s.found == "" {
			s.look(p, s.at)
		}
		s.tail = append([]byte{}, p[max(0, len(p)-len(minisignKey)-2*keySample):]...)
	}
	s.at += int64(len(p))
	return len(p), nil
}

func (s *secrets) look(b []byte, at int64) {
	if i := bytes.Index(b, []byte(minisignKey)); i >= 0 {
		s.found = fmt.Sprintf("at byte %d it has a secret key of minisign", at+int64(i))
	}
	for from := 0; s.found == ""; {
		i := bytes.Index(b[from:], []byte(keyLine))
		if i < 0 {
			return
		}
		from += i + len(keyLine)
		line := b[max(0, from-maxKeyLine):from]
		begin := bytes.LastIndex(line, []byte(keyBegin))
		if sample := b[from:]; begin >= 0 && len(sample) >= keySample && base64(sample[:keySample]) && beginsLine(b, from-len(line)+begin, at) {
			s.found = fmt.Sprintf("at byte %d it has a private key", at+int64(from))
		}
	}
}

// beginsLine tells whether what is at b[i], which is at that offset and i of the whole, begins a line,
// or a file, in an image also. Else it is a string in a program: libraries test themselves with keys.
func beginsLine(b []byte, i int, at int64) bool {
	const block = 4096 // of an image's filesystem
	return (at+int64(i))%block == 0 || i > 0 && b[i-1] == '\n'
}

func base64(b []byte) bool {
	for _, c := range b {
		if !(c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '+' || c == '/') {
			return false
		}
	}
	return true
}
