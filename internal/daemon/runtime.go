package daemon

import (
	"cmp"
	"context"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"banger"
	"banger/api"
	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/op"
	"banger/internal/runtimedir"
	"banger/internal/template"
	"banger/internal/vm"
)

func (d *Daemon) bundleConfig() runtimedir.Config {
	c := d.opts.Config
	return runtimedir.Config{RuntimeDir: c.RuntimeDir, RuntimeRule: c.Origin("runtime_dir"), RepoRoot: c.RepoRoot}
}

func (d *Daemon) bundle() (runtimedir.Bundle, error) {
	return runtimedir.Resolve(d.bundleConfig(), d.opts.Executable, d.opts.Checkout)
}

func (d *Daemon) bundleTarget() (runtimedir.Bundle, error) {
	return runtimedir.Target(d.bundleConfig(), d.opts.Executable, d.opts.Checkout)
}

func (l *library) Runtime() (api.Runtime, error) {
	b, err := l.resolve()
	return api.Runtime{Path: b.Dir, Rule: b.Rule}, err
}

// changeRuntime calls change with the bundle's directory while no other changes it.
func (l *library) changeRuntime(ctx context.Context, change func(dir string) error) error {
	target, err := l.target()
	if err != nil {
		return err
	}
	unlock, err := l.building.Lock(ctx, target.Dir, "built")
	if err != nil {
		return errs.New(errs.Busy, "the runtime bundle is being changed already").Try("wait for that to end")
	}
	defer unlock()
	return change(target.Dir)
}

// BuildRuntime makes what the bundle lacks. A forced build replaces files that the disks
// of VMs are based on, so none may exist.
func (l *library) BuildRuntime(ctx context.Context, o *op.Operation, req api.BuildRuntime) error {
	return l.changeRuntime(ctx, func(dir string) error {
		build := func() error {
			l.making.RLock()
			defer l.making.RUnlock()
			return runtimedir.Build(ctx, dir, runtimedir.Options{Only: req.Only, Force: req.Force, Banger: l.banger, Warn: o.Warn}, o.Stage)
		}
		if !req.Force {
			return build()
		}
		if err := l.vms.DropTemplates(ctx, func(disk.Base, string) bool { return true }); err != nil {
			return err
		}
		return l.vms.Unused(ctx, "the runtime bundle", func(vm.VM) bool { return true }, build)
	})
}

// FetchRuntime implements server.Runtime.
func (l *library) FetchRuntime(ctx context.Context, o *op.Operation, req api.FetchRuntime) error {
	want := runtimedir.Wanted{
		Archive: runtimedir.Archive{URL: cmp.Or(req.URL, l.config.URL), SHA256: req.SHA256, Bytes: req.Bytes},
		Key:     cmp.Or(l.config.Key, req.Key), Terms: runtimedir.Terms{AllowDowngrade: req.AllowDowngrade, DropOld: req.DropOld},
	}
	if l.config.Key != "" && req.Key != "" && req.Key != l.config.Key {
		return errs.New(errs.Invalid, "the bundle must be signed with the key in the config file, which is another than that given").
			Try("leave the key out, or change runtime_key in the config file")
	}
	if want.URL == "" {
		spec, err := runtimedir.ParseSpec(banger.RuntimeBundle)
		if err != nil {
			return err
		}
		want.Archive = spec.Archive
	}
	return l.changeRuntime(ctx, func(dir string) error {
		return runtimedir.NewFetcher().Fetch(ctx, dir, want, l.hold(ctx, dir), o.Stage)
	})
}

// InstallRuntime implements server.Runtime.
func (l *library) InstallRuntime(ctx context.Context, o *op.Operation, req api.InstallRuntime) error {
	if !filepath.IsAbs(req.Dir) {
		return errs.New(errs.Invalid, "%q is not an absolute path", req.Dir)
	}
	if l.config.Key != "" {
		return errs.New(errs.Conflict, "a bundle must be signed with the key in the config file, and the files in %s bear no signature", req.Dir).
			Try("pack and sign it: banger runtime package -o FILE --sign KEY; then fetch that: banger runtime fetch --url file://FILE")
	}
	terms := runtimedir.Terms{AllowDowngrade: req.AllowDowngrade, DropOld: req.DropOld}
	return l.changeRuntime(ctx, func(dir string) error {
		return runtimedir.Install(ctx, dir, req.Dir, terms, l.hold(ctx, dir), o.Stage)
	})
}

// RollBackRuntime implements server.Runtime.
func (l *library) RollBackRuntime(ctx context.Context, o *op.Operation) error {
	return l.changeRuntime(ctx, func(dir string) error { return runtimedir.Rollback(dir, l.hold(ctx, dir)) })
}

// hold lets another bundle take the place of the one in dir while no VM comes to depend on
// that. What VMs' disks are based on stays; a kernel that one boots must be in the next too.
func (l *library) hold(ctx context.Context, dir string) runtimedir.Holder {
	return func(next runtimedir.Record, swap func([]string) error) error {
		return l.vms.Settled(ctx, func(vms []vm.VM, snapshots []template.Template) error {
			var keep []string
			stays := func(on *disk.Base) {
				for base := on; base != nil; base = base.On {
					if rel, ok := within(dir, base); ok && !slices.Contains(keep, rel) {
						keep = append(keep, rel)
					}
				}
			}
			now, err := runtimedir.ReadRecord(dir)
			if err != nil {
				return err
			}
			for _, v := range vms {
				if k := "kernel/" + v.Spec.Kernel; now.Has(k) && !next.Has(k) {
					return errs.New(errs.Conflict, "VM %s boots the kernel %s, which is not in that bundle", v.Name, v.Spec.Kernel).Try("remove the VM first: banger rm %s", v.Name)
				}
				stays(&v.Base)
			}
			for _, t := range snapshots {
				if k := "kernel/" + t.Kernel; t.Damaged != "" || now.Has(k) && !next.Has(k) {
					return errs.New(errs.Conflict, "snapshot %s may need the kernel %s, which is not in that bundle", t.Name, t.Kernel).Try("remove the snapshot first: banger snapshot rm %s", t.Name)
				}
				stays(&t.Disk)
			}
			return swap(keep)
		})
	}
}

// within gives a base's path in the bundle in dir, if it is one of its files, by whatever links
// either is known.
func within(dir string, base *disk.Base) (rel string, ok bool) {
	for _, resolve := range []func(string) (string, error){
		func(path string) (string, error) { return path, nil }, // it may be gone
		filepath.EvalSymlinks,
	} {
		from, err := resolve(dir)
		if err != nil {
			continue
		}
		to, err := resolve(base.Path)
		if err != nil {
			continue
		}
		if rel, err := filepath.Rel(from, to); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return filepath.ToSlash(rel), true
		}
	}
	return "", false
}

// VerifyRuntime implements server.Runtime.
func (l *library) VerifyRuntime(ctx context.Context, yield func(api.Verdict) bool) error {
	b, err := l.resolve()
	if err != nil {
		return err
	}
	return runtimedir.Verify(ctx, b.Dir, func(v runtimedir.Verdict) bool {
		out := api.Verdict{What: v.Path, Problem: v.Problem}
		if v.Problem != "" {
			out.Hint = "fetch or build the bundle anew: banger runtime fetch, banger runtime build --force"
		}
		return yield(out)
	})
}

// PackRuntime implements server.Runtime.
func (l *library) PackRuntime(ctx context.Context, only []string, w io.Writer) error {
	b, err := l.resolve()
	if err != nil {
		return err
	}
	spec, err := runtimedir.ParseSpec(banger.RuntimeBundle)
	if err != nil {
		return err
	}
	return runtimedir.Package(ctx, b.Dir, only, spec.Optional, w)
}
