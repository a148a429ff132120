package runtimedir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/image"
	"banger/internal/image/apt"
	"banger/internal/image/shelf"
	"banger/internal/kernel"
)

// Options of a build.
type Options struct {
	// Only names the artefacts to make, as "kernel/debian", "image/tiny", "kernel" or
	// "image"; empty means all. Those that are optional must be named in full.
	Only  []string
	Force bool // make those that exist again
	// Banger is the version of the banger that builds.
	Banger string
	// Warn is told what was left out without being asked for by name.
	Warn func(sentence string)
}

// Progress reports work: a stage's name, how much is done, of how much (0, 0: unknown).
type Progress = func(stage string, done, total int64)

// artefact is one thing that a bundle has.
type artefact struct {
	Artefact
	name     string // "kernel/debian"
	optional bool   // made only when it is named in full
	spare    bool   // left out, with a sentence, where it can't be had
	make     func(ctx context.Context, progress Progress) error
	source   func() (string, error) // of what was made, for its record
}

// Build makes what the bundle in dir lacks. What can't be made is left out and its error
// joined to the result; the rest is made. Each artefact appears whole or not at all, so
// an interrupted build goes on where it was. errs.Busy if another build is at work there.
func Build(ctx context.Context, dir string, o Options, progress Progress) error {
	spec, err := ParseSpec(banger.RuntimeBundle)
	if err != nil {
		return err
	}
	all := artefacts(dir, spec)
	for _, only := range o.Only {
		if !slices.ContainsFunc(all, func(a artefact) bool { return a.matches(only) }) {
			return errs.New(errs.NotFound, "the runtime bundle has no %q", only).Try("it has %s", names(all))
		}
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	for _, sub := range []string{kernelsDir, imagesDir, programsDir} {
		if err := image.Sweep(ctx, filepath.Join(dir, sub)); err != nil {
			return errs.New(errs.Internal, "can't remove what an earlier build left in %s", dir).Because(err)
		}
	}
	record, err := ReadRecord(dir)
	if err != nil {
		return err
	}
	if err := record.complete(dir, all, o.Banger); err != nil {
		return err
	}
	var failed []error
	for _, a := range all {
		wanted := a.wanted(o.Only)
		if err := a.update(ctx, dir, &record, wanted, wanted && o.Force, progress); err != nil {
			if a.spare && !slices.Contains(o.Only, a.name) && errs.KindOf(err) == errs.Unavailable {
				o.Warn(fmt.Sprintf("left out: %v", err))
			} else {
				failed = append(failed, err)
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

func (a artefact) matches(only string) bool {
	return a.name == only || strings.HasPrefix(a.name, only+"/")
}

// wanted tells whether a build of these, or of all if there are none, makes it.
func (a artefact) wanted(only []string) bool {
	if a.optional {
		return slices.Contains(only, a.name)
	}
	return len(only) == 0 || slices.ContainsFunc(only, a.matches)
}

// Missing lists what the bundle in dir lacks of that which a build makes unasked, apart from what
// may be left out.
func Missing(dir string, description []byte) ([]string, error) {
	spec, err := ParseSpec(description)
	if err != nil {
		return nil, err
	}
	r, err := ReadRecord(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, a := range artefacts(dir, spec) {
		if a.wanted(nil) && !a.spare && !r.Has(a.name) {
			out = append(out, a.name)
		}
	}
	return out, nil
}

func names(all []artefact) string {
	var out []string
	for _, a := range all {
		out = append(out, a.name)
	}
	return strings.Join(out, ", ")
}

// update makes the artefact if it is wanted and missing, and writes it down.
func (a artefact) update(ctx context.Context, dir string, record *Record, wanted, force bool, progress Progress) error {
	_, err := os.Stat(filepath.Join(dir, filepath.FromSlash(a.Path)))
	there := err == nil
	at := slices.IndexFunc(record.Artefacts, func(r ArtefactRecord) bool { return r.Name == a.name })
	if there && at >= 0 && !force {
		return nil
	}
	report := func(stage string, done, total int64) { progress(a.name+": "+stage, done, total) }
	if wanted && (!there || force) {
		if at >= 0 { // what it says ends here, also if this process does
			record.Artefacts = slices.Delete(record.Artefacts, at, at+1)
			at = -1
			if err := record.write(dir); err != nil {
				return err
			}
		}
		if err := a.make(ctx, report); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		there = true
	}
	if !there || at >= 0 {
		return nil
	}
	r, err := a.describe(ctx, dir, report)
	if err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	record.Artefacts = append(record.Artefacts, r)
	return record.write(dir)
}

// artefacts lists what spec describes.
func artefacts(dir string, spec Spec) []artefact {
	kernels, images := filepath.Join(dir, kernelsDir), filepath.Join(dir, imagesDir)
	var out []artefact
	for _, k := range spec.Kernels {
		out = append(out, artefact{
			Artefact: k.Artefact,
			name:     "kernel/" + k.Name,
			make: func(ctx context.Context, progress Progress) error {
				return buildKernel(ctx, kernels, k, progress)
			},
			source: func() (string, error) {
				got, err := kernel.Get(k.Name, kernels)
				return got.Source, err
			},
		})
	}
	for _, i := range spec.Images {
		out = append(out, artefact{
			Artefact: i.Artefact,
			name:     "image/" + i.Name,
			optional: i.Optional,
			make: func(ctx context.Context, progress Progress) error {
				return buildImage(ctx, images, i.Name, progress)
			},
			source: func() (string, error) {
				got, err := image.Get(i.Name, images)
				return fmt.Sprintf("%d packages of %s %s", len(got.Packages), got.Distribution, got.Release), err
			},
		})
	}
	for _, p := range spec.Programs {
		if p.Arch == machineArch() {
			out = append(out, p.artefact(filepath.Join(dir, programsDir)))
		}
	}
	return out
}

// complete adds what records of earlier builds lack: it takes a look at each file, no more.
func (r *Record) complete(dir string, all []artefact, banger string) error {
	changed := r.Banger == "" && banger != ""
	if changed {
		r.Banger = banger
	}
	for i := range r.Artefacts {
		at := slices.IndexFunc(all, func(a artefact) bool { return a.name == r.Artefacts[i].Name })
		if at >= 0 && r.Artefacts[i].Licence == "" {
			r.Artefacts[i].Licence, changed = all[at].Licence, true
		}
		for j := range r.Artefacts[i].Files {
			f := &r.Artefacts[i].Files[j]
			info, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(f.Path)))
			if err == nil && f.Mode == "" && slices.Contains(modes, modeOf(info)) {
				f.Mode, changed = modeOf(info), true
			}
		}
	}
	if !changed {
		return nil
	}
	return r.write(dir)
}

func buildImage(ctx context.Context, root, name string, progress Progress) error {
	m, err := image.BuiltIn(name)
	if err != nil {
		return err
	}
	_, err = image.Rebuild(ctx, root, m, progress)
	return err
}

// buildKernel fetches the kernel's package through apt and imports what is in it.
func buildKernel(ctx context.Context, root string, k Kernel, progress Progress) error {
	scratch, err := shelf.Scratch(root)
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	sources, err := apt.HostSources(apt.Etc, k.Release)
	if err != nil {
		return err
	}
	progress("fetching package lists", 0, 0)
	private, err := apt.Open(ctx, filepath.Join(scratch, "apt"), sources)
	if err != nil {
		return err
	}
	progress("downloading "+k.Package, 0, 0)
	pkg, err := private.Download(ctx, k.Package, k.RealPrefix)
	if err != nil {
		return err
	}
	progress("unpacking "+pkg.Name, 0, 0)
	tree := filepath.Join(scratch, "tree")
	if err := host.Run(ctx, host.Command{Path: "dpkg-deb", Args: []string{"--extract", pkg.Path, tree}}); err != nil {
		return err
	}
	vmlinuz, err := one(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil {
		return err
	}
	modules, err := one(filepath.Join(tree, "lib", "modules", "*"))
	if err != nil {
		return err
	}
	_, err = kernel.Import(ctx, root, kernel.ImportSpec{
		Name: k.Name, Image: vmlinuz, ModulesDir: modules, Source: fmt.Sprintf("Debian package %s %s", pkg.Name, pkg.Version), Replace: true,
	}, progress)
	return err
}

// one returns the only file that matches pattern.
func one(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		return "", errs.New(errs.Unavailable, "the kernel's package has %d files %s, not one", len(found), filepath.Base(pattern)).Because(err)
	}
	return found[0], nil
}

// describe reads the artefact's files for the record.
func (a artefact) describe(ctx context.Context, dir string, progress Progress) (ArtefactRecord, error) {
	source, err := a.source()
	if err != nil {
		return ArtefactRecord{}, err
	}
	r := ArtefactRecord{Name: a.name, Source: source, Licence: a.Licence, BuiltAt: time.Now().UTC().Truncate(time.Second)}
	err = filepath.WalkDir(filepath.Join(dir, filepath.FromSlash(a.Path)), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		f := FileRecord{Path: filepath.ToSlash(rel), Mode: modeOf(info)}
		f.SHA256, f.Bytes, err = shelf.Checksum(ctx, path, func(done, total int64) { progress("checksum", done, total) })
		r.Files = append(r.Files, f)
		return err
	})
	return r, err
}
