package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/host"
	"banger/internal/image/apt"
)

const (
	// fileMirrorHook lets programs of the image reach mirrors that are directories of the host.
	fileMirrorHook = "/usr/share/mmdebstrap/hooks/file-mirror-automount"

	// resumed is the variant whose bootstrap can be kept: what it has beside the essential
	// packages can be named.
	resumed = "minbase"
)

// install writes a tar of the packages, installed, to w.
func (b *builder) install(ctx context.Context, w io.Writer) error {
	hash := phaseHash(b.phases, phasePackages)
	if kept, there := b.outputs.get(phasePackages, hash); there && !b.Refresh {
		b.progress(phaseFiles, 0, 0)
		f, err := os.Open(kept)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	}
	if !b.outputs.keeps() {
		return b.mmdebstrap(ctx, "", w)
	}
	path := filepath.Join(b.dir, phasePackages)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	bootstrap := filepath.Join(b.dir, phaseBootstrap)
	out := &output{w: io.MultiWriter(f, w)}
	if err := b.mmdebstrap(ctx, bootstrap, out); out.err != nil {
		return out.err // why mmdebstrap failed: it could not write
	} else if err != nil {
		return err
	}
	if _, err := os.Stat(bootstrap); err == nil {
		if _, err := b.outputs.put(phaseBootstrap, phaseHash(b.phases, phaseBootstrap), bootstrap); err != nil {
			return err
		}
	}
	_, err = b.outputs.put(phasePackages, hash, path)
	return err
}

// output keeps its first error.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if o.err == nil {
		o.err = err
	}
	return n, err
}

// mmdebstrap installs the packages: on a bootstrap that was kept or, where there is none, on
// a new one, which it keeps at the path bootstrap, unless that is empty, if it can.
func (b *builder) mmdebstrap(ctx context.Context, bootstrap string, to io.Writer) error {
	variant, include := b.m.Variant, b.m.Packages
	args := []string{
		"--architectures=amd64", "--format=tar",
		"--skip=output/dev",         // the guest's kernel fills /dev, and no namespace may make devices
		"--dpkgopt=force-unsafe-io", // dpkg need not sync each file: a build that is cut short is thrown away
		`--extract-hook=ls "$1/var/cache/apt/archives" > "$1` + archivesFile + `"`,
	}
	dir, mode := b.dir, "root"
	if b.namespace != nil {
		var err error
		if dir, err = makeOutside(b.dir); err != nil {
			return err
		}
		mode = "unshare"
	}
	args = append(args, "--mode="+mode)
	env := append(apt.Env(), workMark+b.dir, "TMPDIR="+dir)
	if variant == resumed && b.namespace == nil {
		kept, there := b.outputs.get(phaseBootstrap, phaseHash(b.phases, phaseBootstrap))
		if there && !b.Refresh {
			variant = "custom"
			include = append([]string{"apt", "?priority(required)", "?upgradable"}, include...)
			args = append(args, "--skip=check/empty", "--setup-hook="+restoreHook)
			env = append(env, "BANGER_BOOTSTRAP="+kept)
		} else if bootstrap != "" {
			args = append(args, "--essential-hook="+keepHook)
			env = append(env, "BANGER_BOOTSTRAP="+bootstrap)
		}
	}
	args = append(args, "--variant="+variant, "--include="+strings.Join(include, ","))
	// The host's own, which come last, count.
	for _, o := range append([]string{`Acquire::http::Timeout "30"`, `Acquire::https::Timeout "30"`}, b.options...) {
		args = append(args, "--aptopt="+o)
	}
	list := ""
	for _, s := range b.sources {
		if path, ok := strings.CutPrefix(s.URI, "file:"); ok && variant == "extract" {
			s.URI = "copy:" + path // it runs no program of the image's, and so no hook's end
		} else if s.Local() {
			args = append(args, "--hook-dir="+fileMirrorHook)
		}
		list += s.Line() + "\n"
	}
	args = append(args, b.m.Release, "-", "-")
	if free, err := host.FreeBytes(dir); err == nil && free < roomNeeded {
		return unix.ENOSPC
	}
	watched, stop := whileRoom(ctx, dir)
	defer stop()
	err := host.Run(watched, host.Command{
		Path: "mmdebstrap", Args: args, Env: env, Stdin: strings.NewReader(list), Stdout: to, Stderr: &stages{to: b.progress},
		OwnMounts: b.namespace == nil, // otherwise it has a namespace of its own
	})
	exit, ok := errors.AsType[*host.ExitError](err)
	if err != nil && errors.Is(context.Cause(watched), unix.ENOSPC) || ok && strings.Contains(exit.Tail, noSpace) {
		return unix.ENOSPC
	}
	return apt.Words(err)
}

const (
	// roomNeeded is the free space, in bytes, without which nothing is begun: what the package
	// lists of a release take.
	roomNeeded = 128 << 20
	// roomLeft is the free space, in bytes, below which a filesystem is as good as full.
	roomLeft = 8 << 20
	// roomCheck is how often a filesystem is looked at. It has to be full twice.
	roomCheck = time.Second
)

// whileRoom returns a ctx that ends with ENOSPC when the filesystem of dir is full: apt
// waits for ever for a download that could not be written.
func whileRoom(ctx context.Context, dir string) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		tick := time.NewTicker(roomCheck)
		defer tick.Stop()
		for full := 0; full < 2; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if free, err := host.FreeBytes(dir); err == nil && free < roomLeft {
				full++
			} else {
				full = 0
			}
		}
		cancel(unix.ENOSPC)
	}()
	return ctx, func() { cancel(nil) }
}

const (
	// keepHook is run when the essential packages are installed, and nothing else. What can't be kept, for
	// want of room perhaps, is not.
	keepHook = `tar --create --file="$BANGER_BOOTSTRAP" --directory="$1" --numeric-owner --xattrs --xattrs-include="*" ` +
		`--one-file-system --exclude=./proc --exclude=./sys --exclude="./dev/*" --exclude="./var/lib/apt/lists/*" --exclude="./var/cache/apt/archives/*.deb" . || rm -f "$BANGER_BOOTSTRAP"`

	// restoreHook puts that in place of them, but for what mmdebstrap had laid in the way
	// of services while it was at work.
	restoreHook = `tar --extract --file="$BANGER_BOOTSTRAP" --directory="$1" --numeric-owner --preserve-permissions --xattrs --xattrs-include="*" && ` +
		`mv "$1/sbin/start-stop-daemon.REAL" "$1/sbin/start-stop-daemon" && rm -f "$1/usr/sbin/policy-rc.d"`
)

// stageNames are mmdebstrap's messages that mark a stage, and what to call it.
var stageNames = map[string]string{
	"I: running apt-get update...":                          "fetching package lists",
	"I: downloading packages with apt...":                   "downloading packages",
	"I: extracting archives...":                             "extracting packages",
	"I: installing essential packages...":                   "installing essential packages",
	"I: installing remaining packages inside the chroot...": "installing packages",
	"I: creating tarball...":                                "packing",
}

// stages turns mmdebstrap's messages into progress.
type stages struct {
	to   Progress
	line bytes.Buffer
}

func (s *stages) Write(p []byte) (int, error) {
	for _, c := range p {
		if c != '\n' {
			s.line.WriteByte(c)
			continue
		}
		if stage, ok := stageNames[s.line.String()]; ok {
			s.to(stage, 0, 0)
		}
		s.line.Reset()
	}
	return len(p), nil
}
