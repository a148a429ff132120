package runtimedir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"banger/internal/errs"
	"banger/internal/image/shelf"
)

// Verdict is what is wrong with a file of a bundle; nothing is if Problem is empty.
type Verdict struct {
	Path    string // relative to the bundle
	Problem string
}

// Verify reads every file of the bundle in dir and tells of each whether it is what the
// record says; also of those that the record does not know. It ends early when yield
// returns false. errs.Internal if there is no record that can be used.
func Verify(ctx context.Context, dir string, yield func(Verdict) bool) error {
	return verify(ctx, dir, true, yield)
}

// Quick is Verify without reading the files' content: it tells problems only.
func Quick(ctx context.Context, dir string) ([]Verdict, error) {
	var out []Verdict
	err := verify(ctx, dir, false, func(v Verdict) bool {
		if v.Problem != "" {
			out = append(out, v)
		}
		return true
	})
	return out, err
}

func verify(ctx context.Context, dir string, read bool, yield func(Verdict) bool) error {
	if _, err := os.Stat(filepath.Join(dir, recordFile)); err != nil {
		return errs.New(errs.Unavailable, "there is no runtime bundle in %s", dir).Because(err).Try("make or complete it: banger runtime build")
	}
	r, err := ReadRecord(dir)
	if err != nil {
		return err
	}
	files := r.Files()
	for _, p := range slices.Sorted(maps.Keys(files)) {
		problem := files[p].problem(ctx, dir, read)
		if err := ctx.Err(); err != nil {
			return err
		}
		if !yield(Verdict{p, problem}) {
			return nil
		}
	}
	extra, err := unknown(dir, files)
	if err != nil {
		return err
	}
	for _, p := range extra {
		if !yield(Verdict{p, "it is no part of the bundle"}) {
			return nil
		}
	}
	return nil
}

// problem says how the file in the bundle differs from its record, or nothing.
func (f FileRecord) problem(ctx context.Context, dir string, read bool) string {
	path := filepath.Join(dir, filepath.FromSlash(f.Path))
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "it is missing"
	case err != nil:
		return "it can't be read: " + err.Error()
	case !info.Mode().IsRegular():
		return "it is no regular file"
	case info.Size() != f.Bytes:
		return fmt.Sprintf("it has %d bytes, and had %d", info.Size(), f.Bytes)
	case f.Mode != "" && f.Mode != modeOf(info):
		return fmt.Sprintf("its mode is %s, and was %s", modeOf(info), f.Mode)
	case !read:
		return ""
	}
	sum, _, err := shelf.Checksum(ctx, path, nil)
	switch {
	case err != nil:
		return "it can't be read: " + err.Error()
	case sum != f.SHA256:
		return fmt.Sprintf("it has changed: its SHA-256 is %s, and was %s", sum, f.SHA256)
	}
	return ""
}

func modeOf(info fs.FileInfo) string { return fmt.Sprintf("%04o", info.Mode().Perm()) }

// unknown lists what is in dir and not among files, in order. Stages of a build that was cut
// short are among that.
func unknown(dir string, files map[string]FileRecord) (out []string, err error) {
	// With the slash it is what a link of that name leads to that is walked.
	err = filepath.WalkDir(dir+"/", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if _, known := files[filepath.ToSlash(rel)]; !known && rel != recordFile {
			out = append(out, filepath.ToSlash(rel))
		}
		return nil
	})
	return out, err
}
