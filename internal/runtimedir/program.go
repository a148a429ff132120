package runtimedir

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/image/shelf"
)

// maxProgramArchive bounds an archive of programs, in bytes; maxProgram one of them.
const (
	maxProgramArchive = 64 << 20
	maxProgram        = 64 << 20
)

// machineArch is this machine's architecture, as uname -m says.
func machineArch() string {
	return map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
}

func (p Program) artefact(root string) artefact {
	return artefact{
		Artefact: p.Artefact,
		name:     "program/" + p.Name,
		spare:    true,
		make: func(ctx context.Context, progress Progress) error {
			return p.build(ctx, root, NewFetcher(), progress)
		},
		source: func() (string, error) { return p.URL + " (" + p.Version + ")", nil },
	}
}

// build fetches the archive and puts its members in root/<name>, whole or not at all.
func (p Program) build(ctx context.Context, root string, f *Fetcher, progress Progress) error {
	var archive bytes.Buffer
	sum := sha256.New()
	body, err := f.open(ctx, p.URL, 0)
	if err != nil {
		return errs.New(errs.Unavailable, "%s %s can't be fetched", p.Name, p.Version).Because(err).Try("try again where there is a network: banger runtime build program/%s", p.Name)
	}
	defer body.Close()
	n, err := io.Copy(io.MultiWriter(&archive, sum), io.LimitReader(body, maxProgramArchive+1))
	progress("downloading", n, n)
	if err != nil {
		return errs.New(errs.Unavailable, "%s %s can't be fetched", p.Name, p.Version).Because(err).Try("try again: banger runtime build program/%s", p.Name)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != p.SHA256 {
		return errs.New(errs.Invalid, "what is at %s is not %s %s: its SHA-256 is %s, and must be %s", p.URL, p.Name, p.Version, got, p.SHA256).
			Try("nothing of it was used; if a proxy is in between, ask it")
	}
	stage, err := shelf.Scratch(root)
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	if err := p.unpack(&archive, stage); err != nil {
		return errs.New(errs.Internal, "can't unpack %s %s", p.Name, p.Version).Because(err)
	}
	if err := os.Chmod(stage, 0o755); err != nil {
		return err
	}
	return replaceDir(stage, filepath.Join(root, p.Name))
}

func (p Program) unpack(archive io.Reader, dir string) error {
	z, err := gzip.NewReader(archive)
	if err != nil {
		return err
	}
	mode, err := strconv.ParseUint(p.Mode, 8, 32)
	if err != nil {
		return err
	}
	found := 0
	for in := tar.NewReader(z); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		i := slices.IndexFunc(p.Files, func(f Member) bool { return f.Member == filepath.Clean(h.Name) })
		if i < 0 || h.Typeflag != tar.TypeReg {
			continue
		}
		content, err := io.ReadAll(io.LimitReader(in, maxProgram))
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		if want := p.Files[i].SHA256; want != "" && hex.EncodeToString(sum[:]) != want {
			return fmt.Errorf("%s in it has the SHA-256 %x, and must have %s", h.Name, sum, want)
		}
		if err := writeSynced(filepath.Join(dir, p.Files[i].Name), content, os.FileMode(mode)); err != nil {
			return err
		}
		found++
	}
	if found != len(p.Files) {
		return fmt.Errorf("it has %d of %d files", found, len(p.Files))
	}
	return shelf.SyncDir(dir)
}

func writeSynced(path string, content []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(content); err == nil {
		err = errors.Join(f.Chmod(mode), f.Sync())
	}
	return errors.Join(err, f.Close())
}

// replaceDir puts the directory stage in the place of target, in one step; what was there
// is then at stage.
func replaceDir(stage, target string) error {
	err := unix.Renameat2(unix.AT_FDCWD, stage, unix.AT_FDCWD, target, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		err = os.Rename(stage, target)
	}
	if err != nil {
		return fmt.Errorf("put %s in place: %w", target, err)
	}
	return shelf.SyncDir(filepath.Dir(target))
}
