// Package runtimedir owns the runtime bundle: the read-only directory of kernels, images
// and programs that machines are started from. It finds the bundle and builds it; what a
// kernel or an image is, others know.
package runtimedir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/errs"
)

// Directories and files of a bundle.
const (
	recordFile  = "bundle.json"
	kernelsDir  = "kernels"
	imagesDir   = "images"
	programsDir = "programs"
)

// EnvDir is the environment variable that names the bundle.
const EnvDir = "BANGER_RUNTIME_DIR"

// Config is what was said of the bundle. Paths are absolute or "".
type Config struct {
	RuntimeDir  string // the bundle itself
	RuntimeRule string // who says so, for people
	RepoRoot    string // a checkout that has it in ./runtime; kept for old config files
}

// Bundle is a runtime bundle that was found.
type Bundle struct {
	Dir  string // absolute
	Rule string // why this one, for people
}

// KernelsDir is the root of the bundle's kernels.
func (b Bundle) KernelsDir() string { return filepath.Join(b.Dir, kernelsDir) }

// ImagesDir is the root of the bundle's images.
func (b Bundle) ImagesDir() string { return filepath.Join(b.Dir, imagesDir) }

// Program is the path of a program that Debian does not have, as "firecracker/jailer".
func (b Bundle) Program(name string) string {
	return filepath.Join(b.Dir, programsDir, filepath.FromSlash(name))
}

// place is where a bundle may be.
type place struct {
	dir, rule string
	// only tells that someone named this place, so that no other is looked at.
	only bool
}

// places lists where a bundle may be, in order. executable is the path of the running
// program, with links resolved; checkout is the source tree it was built in, or "".
func places(cfg Config, executable, checkout string) []place {
	var out []place
	if cfg.RuntimeDir != "" {
		out = append(out, place{cfg.RuntimeDir, cfg.RuntimeRule, true})
	}
	if cfg.RepoRoot != "" {
		out = append(out, place{filepath.Join(cfg.RepoRoot, "runtime"), "repo_root, which is there for old config files only: write runtime_dir instead", true})
	}
	if executable != "" {
		out = append(out, place{filepath.Join(filepath.Dir(executable), "..", "lib", "banger"), "beside the program", false})
	}
	if checkout != "" {
		out = append(out, place{filepath.Join(checkout, "runtime"), "in the checkout the program was built in", false})
	}
	for i, p := range out {
		if p.only {
			return out[i : i+1]
		}
	}
	return out
}

// Resolve finds the bundle. errs.Unavailable if there is none, with the places looked at
// and the command that makes one. A place that someone named is the only one looked at.
func Resolve(cfg Config, executable, checkout string) (Bundle, error) {
	var looked []string
	for _, p := range places(cfg, executable, checkout) {
		dir, err := filepath.Abs(p.dir)
		if err != nil {
			return Bundle{}, err
		}
		_, err = os.Stat(filepath.Join(dir, recordFile))
		if err == nil {
			return Bundle{Dir: dir, Rule: p.rule}, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return Bundle{}, errs.New(errs.Unavailable, "can't look for the runtime bundle").Because(err)
		}
		why := ""
		if errors.Is(err, fs.ErrPermission) {
			why = ", which this user may not read"
		}
		looked = append(looked, fmt.Sprintf("%s (%s%s)", dir, p.rule, why))
	}
	e := errs.New(errs.Unavailable, "there is no runtime bundle")
	if len(looked) > 0 {
		e = e.Because(fmt.Errorf("looked at %s", strings.Join(looked, ", ")))
	}
	return Bundle{}, e.Try("fetch one: banger runtime fetch --url URL; or make one of Debian's packages: banger runtime build")
}

// Target says where a build puts the bundle: the place someone named, else where there is
// one already, else the checkout's, else beside the program.
func Target(cfg Config, executable, checkout string) (Bundle, error) {
	if b, err := Resolve(cfg, executable, checkout); err == nil {
		return b, nil
	}
	all := places(cfg, executable, checkout)
	if len(all) == 0 {
		return Bundle{}, errs.New(errs.Invalid, "no place is known for the runtime bundle").Try("name one in $%s", EnvDir)
	}
	p := all[len(all)-1]
	dir, err := filepath.Abs(p.dir)
	return Bundle{Dir: dir, Rule: p.rule}, err
}
