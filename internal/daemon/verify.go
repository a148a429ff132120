package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"banger/api"
	"banger/internal/errs"
	"banger/internal/guest/embedded"
	"banger/internal/image"
	"banger/internal/image/shelf"
	"banger/internal/kernel"
)

// Verify reads every image and kernel and tells of each whether it still is what it was
// when it was made.
func (l *library) Verify(ctx context.Context, yield func(api.Verdict) bool) {
	images, err := l.images.List()
	if err != nil {
		yield(api.Verdict{What: "images", Problem: err.Error(), Hint: errs.HintOf(err)})
		return
	}
	kernels, err := kernel.List(first(l.kernelRoots())...)
	if err != nil {
		yield(api.Verdict{What: "kernels", Problem: err.Error(), Hint: errs.HintOf(err)})
		return
	}
	var files []checked
	for _, i := range images {
		if i.Damage != nil {
			if !yield(api.Verdict{What: "image " + i.Title(), Problem: i.Damage.Error(), Hint: errs.HintOf(i.Damage)}) {
				return
			}
			continue
		}
		files = append(files, checked{"image " + i.Title(), i.Path, i.SHA256})
	}
	for _, k := range kernels {
		files = append(files, checked{"kernel " + k.Name, k.Vmlinux, k.SHA256})
	}
	for _, f := range files {
		v := api.Verdict{What: f.what}
		if v.Problem = f.problem(ctx); v.Problem != "" {
			v.Hint = "remove those who use it, then make it anew"
		}
		if ctx.Err() != nil || !yield(v) {
			return
		}
	}
}

// first drops why there is no bundle: without one there is less to verify.
func first(roots []string, _ error) []string { return roots }

// checked is a file that had this SHA-256 when it was made.
type checked struct{ what, path, sha256 string }

// problem says how the file differs from what it was, or nothing.
func (c checked) problem(ctx context.Context) string {
	sum, _, err := shelf.Checksum(ctx, c.path, nil)
	switch {
	case err != nil:
		return "it can't be read: " + err.Error()
	case sum != c.sha256:
		return fmt.Sprintf("%s has changed: its SHA-256 is %s, and was %s", c.path, sum, c.sha256)
	}
	return ""
}

// Prune removes what nothing needs any more: cached initramfs of kernels that are gone or of
// another agent, and what builds and imports that were cut short have left. With dry it
// only lists them.
func (l *library) Prune(ctx context.Context, dry bool) ([]api.File, error) {
	paths, err := l.unneeded(ctx)
	if err != nil {
		return nil, err
	}
	if l.making.TryLock() { // otherwise the stages that there are may be in use
		defer l.making.Unlock()
		left, err := l.leftovers()
		if err != nil {
			return nil, err
		}
		paths = append(paths, left...)
	}
	files := []api.File{}
	for _, path := range paths {
		bytes, err := allocatedBelow(path)
		if err == nil && !dry {
			err = image.RemoveLeftover(ctx, path)
		}
		if err != nil {
			return files, err
		}
		files = append(files, api.File{Path: path, Bytes: bytes})
	}
	return files, nil
}

// leftovers lists what builds and imports that were cut short have left, and the work of those
// that go on.
func (l *library) leftovers() ([]string, error) {
	images, err := l.images.Leftovers()
	if err != nil {
		return nil, err
	}
	kernels, err := shelf.Leftovers(l.ownKernels())
	return append(images, kernels...), err
}

// sweep begins to remove what an earlier daemon was at when it was killed, and returns what waits
// for the end of that. Nothing may be in the making yet.
func (l *library) sweep(ctx context.Context, log *slog.Logger) (wait func()) {
	left, err := l.leftovers()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, path := range left {
			if ctx.Err() != nil {
				return // for the next daemon
			}
			err = errors.Join(err, image.RemoveLeftover(ctx, path))
		}
		if err != nil {
			log.Warn("remove what was left half made", "err", err)
		}
	}()
	return func() { <-done }
}

// unneeded lists the cached initramfs that no kernel there is would boot with now.
func (l *library) unneeded(ctx context.Context) ([]string, error) {
	agent, err := embedded.Agent()
	if err != nil {
		return nil, err
	}
	kernels, err := kernel.List(first(l.kernelRoots())...)
	if err != nil {
		return nil, err
	}
	needed := map[string]bool{}
	for _, k := range kernels {
		path, err := kernel.Initramfs(ctx, k, agent, l.initramfsCache())
		if err != nil {
			return nil, err
		}
		needed[path] = true
	}
	entries, err := os.ReadDir(l.initramfsCache())
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		path := filepath.Join(l.initramfsCache(), e.Name())
		if strings.HasSuffix(path, ".cpio") && !needed[path] {
			paths = append(paths, path)
		}
	}
	return paths, nil
}
