package kernel

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
	"github.com/google/renameio/v2"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"

	"banger/internal/errs"
)

const (
	// LoadListPath is where the agent finds the modules to load, in order: lines of an
	// absolute path, a tab and the condition, as a [ModuleLoad] has it.
	LoadListPath = "/banger/modules"

	maxModuleBytes = 64 << 20
	// cpioAlign is the alignment of each archive in an initramfs: Linux skips zeros
	// between them and wants them to begin at a multiple of four; whole sectors suit
	// other readers too.
	cpioAlign = 512

	rdevOffset = 78 // in a newc header: two fields of eight hexadecimal digits
)

// archive writes a cpio in the format Linux unpacks (newc). Everything in it belongs to
// root and has no time, so equal contents are equal bytes.
type archive struct {
	buf  bytes.Buffer
	w    *cpio.Writer
	made map[string]bool
	err  error
}

func newArchive() *archive {
	a := &archive{made: map[string]bool{}}
	a.w = cpio.NewWriter(&a.buf)
	return a
}

func (a *archive) entry(h *cpio.Header, content []byte) {
	if a.err != nil {
		return
	}
	h.Name, h.Size = strings.TrimPrefix(h.Name, "/"), int64(len(content))
	if a.err = a.w.WriteHeader(h); a.err == nil {
		_, a.err = a.w.Write(content)
	}
}

// dir adds a directory and those above it, once.
func (a *archive) dir(name string) {
	if name == "/" || name == "." || a.made[name] {
		return
	}
	a.dir(path.Dir(name))
	a.made[name] = true
	a.entry(&cpio.Header{Name: name, Mode: cpio.TypeDir | 0o755, Links: 2}, nil)
}

func (a *archive) file(name string, mode cpio.FileMode, content []byte) {
	a.dir(path.Dir(name))
	a.entry(&cpio.Header{Name: name, Mode: cpio.TypeReg | mode, Links: 1}, content)
}

// console adds /dev/console (character device 5, 1), without which Linux starts init with
// no open descriptors. The library leaves the device's number out of the header.
func (a *archive) console() {
	if a.err == nil {
		a.err = a.w.Flush() // the padding of the entry before
	}
	start := a.buf.Len()
	a.entry(&cpio.Header{Name: "/dev/console", Mode: cpio.TypeChar | 0o600, Links: 1}, nil)
	if a.err == nil {
		copy(a.buf.Bytes()[start+rdevOffset:], "0000000500000001")
	}
}

func (a *archive) close() ([]byte, error) {
	if a.err == nil {
		a.err = a.w.Close()
	}
	if over := a.buf.Len() % cpioAlign; over != 0 {
		a.buf.Write(make([]byte, cpioAlign-over))
	}
	return a.buf.Bytes(), a.err
}

// modulesCpio packs the modules of loads, found below dir, and the list of them.
func modulesCpio(dir, version string, loads []ModuleLoad) ([]byte, error) {
	var list strings.Builder
	files := make(map[string][]byte, len(loads))
	for _, l := range loads {
		content, err := readModule(filepath.Join(dir, l.Path))
		if err != nil {
			return nil, fmt.Errorf("module %s: %w", l.Path, err)
		}
		plain, _, _ := strings.Cut(path.Base(l.Path), ".ko")
		name := path.Join("/lib/modules", version, path.Dir(l.Path), plain+".ko")
		files[name] = content
		fmt.Fprintf(&list, "%s\t%s\n", name, l.Condition)
	}
	files[LoadListPath] = []byte(list.String())

	a := newArchive()
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		a.file(name, 0o644, files[name])
	}
	return a.close()
}

// readModule returns a module as the kernel wants it: uncompressed.
func readModule(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(file) {
	case ".xz":
		r, err = xz.NewReader(f, maxDictBytes)
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxDictBytes)); err == nil {
			defer d.Close()
			r = d
		}
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxModuleBytes+1))
	if err == nil && len(b) > maxModuleBytes {
		err = fmt.Errorf("larger than %d MiB", maxModuleBytes>>20)
	}
	return b, err
}

// agentCpio packs the agent as the initramfs's init.
func agentCpio(agent []byte) ([]byte, error) {
	a := newArchive()
	for _, d := range []string{"/dev", "/proc", "/sys", "/sysroot"} {
		a.dir(d)
	}
	a.console()
	a.file("/init", 0o755, agent)
	return a.close()
}

// Initramfs returns the path of an initramfs for k with agent as its init: the kernel's
// modules and the agent, each a cpio archive, end to end. Files in cacheDir are named by
// their content; one that exists is used again.
func Initramfs(ctx context.Context, k Kernel, agent []byte, cacheDir string) (string, error) {
	var modules []byte
	if k.ModulesCpio != "" {
		var err error
		if modules, err = os.ReadFile(k.ModulesCpio); err != nil {
			return "", errs.New(errs.Internal, "read the modules of kernel %s", k.Name).Because(err)
		}
	}
	init, err := agentCpio(agent)
	if err != nil {
		return "", fmt.Errorf("pack the guest agent: %w", err)
	}
	h := sha256.New()
	h.Write(modules)
	h.Write(init)
	file := filepath.Join(cacheDir, "initramfs-"+hex.EncodeToString(h.Sum(nil))[:32]+".cpio")
	if info, err := os.Stat(file); err == nil && info.Size() == int64(len(modules)+len(init)) {
		return file, nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(cacheDir, 0o700); err != nil {
		return "", err
	}
	// Callers at the same time write the same bytes and each rename is whole.
	if err := renameio.WriteFile(file, append(modules, init...), 0o444); err != nil {
		return "", errs.New(errs.Internal, "write the initramfs of kernel %s", k.Name).Because(err)
	}
	return file, nil
}
