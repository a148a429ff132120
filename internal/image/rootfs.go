package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	// archivesFile is where a hook of the build lists the packages it unpacked: an image
	// without a package manager does not tell.
	archivesFile = "/.archives"
	statusFile   = "/var/lib/dpkg/status"

	// maxListBytes bounds the lists of packages, maxBusyboxBytes a busybox.
	maxListBytes    = 64 << 20
	maxBusyboxBytes = 16 << 20
)

// buildOnly are files of the build itself.
var buildOnly = []string{archivesFile, "/etc/apt/apt.conf.d/99mmdebstrap", "/etc/dpkg/dpkg.cfg.d/99mmdebstrap"}

// mountPoints are the directories without which no system starts. mmdebstrap leaves out
// /dev with what is in it, and a busybox brings none.
var mountPoints = []string{"/dev", "/proc", "/run", "/sys"}

// entryTime is when the files that a manifest adds were made: always the same.
var entryTime = time.Unix(1700000000, 0)

// rootfs turns the tar of a fresh installation into the one a manifest describes.
type rootfs struct {
	m       Manifest
	out     *tar.Writer
	seen    map[string]bool // paths written
	status  []byte          // dpkg's list of packages
	list    []byte          // the content of archivesFile
	busybox []byte
}

// rewriteRootfs copies the tar in to out as m wants it and returns the packages in it.
// applets asks a busybox which paths it wants to be called by.
func rewriteRootfs(in io.Reader, out io.Writer, m Manifest, applets func(busybox []byte) ([]string, error)) ([]Package, error) {
	r := rootfs{m: m, out: tar.NewWriter(out), seen: map[string]bool{"/": true}}
	if err := r.copy(tar.NewReader(in)); err != nil {
		return nil, err
	}
	for _, p := range m.Keep {
		if !r.seen[p] {
			return nil, fmt.Errorf("none of the packages has %s", p)
		}
	}
	var entries []Entry
	for _, p := range mountPoints {
		if !r.seen[p] && !slices.ContainsFunc(m.Entries, func(e Entry) bool { return e.Path == p }) {
			entries = append(entries, Entry{Path: p, Mode: 0o755, Dir: true})
		}
	}
	if m.Busybox != "" {
		links, err := r.appletLinks(applets)
		if err != nil {
			return nil, err
		}
		entries = append(entries, links...)
	}
	for _, e := range append(entries, m.Entries...) {
		if err := r.add(e); err != nil {
			return nil, fmt.Errorf("add %s: %w", e.Path, err)
		}
	}
	if err := r.out.Close(); err != nil {
		return nil, err
	}
	if packages := parseStatus(r.status); len(packages) > 0 {
		return packages, nil
	}
	return parseArchives(r.list), nil
}

// copy copies what is kept, and reads what must be known.
func (r *rootfs) copy(in *tar.Reader) error {
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the installation: %w", err)
		}
		p := path.Clean("/" + h.Name)
		content := io.Reader(in)
		for _, want := range []struct {
			path  string
			to    *[]byte
			limit int64
		}{{statusFile, &r.status, maxListBytes}, {archivesFile, &r.list, maxListBytes}, {r.m.Busybox, &r.busybox, maxBusyboxBytes}} {
			if p != want.path || h.Typeflag != tar.TypeReg {
				continue
			}
			if h.Size > want.limit {
				return fmt.Errorf("%s has %d bytes", p, h.Size)
			}
			if *want.to, err = io.ReadAll(in); err != nil {
				return err
			}
			content = bytes.NewReader(*want.to)
		}
		if !r.keeps(p) {
			continue
		}
		if err := r.out.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if _, err := io.Copy(r.out, content); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		r.seen[p] = true
	}
}

// keeps tells whether the image has the installation's p.
func (r *rootfs) keeps(p string) bool {
	if slices.Contains(buildOnly, p) || slices.ContainsFunc(r.m.Entries, func(e Entry) bool { return e.Path == p }) {
		return false
	}
	if slices.ContainsFunc(r.m.Drop, func(d string) bool { return p == d || strings.HasPrefix(p, d+"/") }) {
		return false
	}
	return len(r.m.Keep) == 0 || p == "/" || slices.ContainsFunc(r.m.Keep, func(k string) bool { return p == k || strings.HasPrefix(k, p+"/") })
}

// add writes an entry of the manifest, and the directories above it that are not there.
func (r *rootfs) add(e Entry) error {
	if dir := path.Dir(e.Path); !r.seen[dir] {
		if err := r.add(Entry{Path: dir, Mode: 0o755, Dir: true}); err != nil {
			return err
		}
	}
	content, size := io.Reader(strings.NewReader(e.Content)), int64(len(e.Content))
	if e.Source != "" {
		f, err := os.Open(e.Source)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		content, size = f, info.Size()
	}
	h := &tar.Header{Name: "." + e.Path, Mode: e.Mode, ModTime: entryTime, Typeflag: tar.TypeReg, Size: size, Format: tar.FormatPAX}
	switch {
	case e.Dir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case e.Link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
	}
	if err := r.out.WriteHeader(h); err != nil {
		return err
	}
	r.seen[e.Path] = true
	_, err := io.CopyN(r.out, content, h.Size)
	return err
}

// appletLinks links busybox's applets to it, but for init: an image with a busybox has
// none unless its manifest says so.
func (r *rootfs) appletLinks(applets func([]byte) ([]string, error)) ([]Entry, error) {
	if r.busybox == nil {
		return nil, fmt.Errorf("none of the packages has %s", r.m.Busybox)
	}
	paths, err := applets(r.busybox)
	if err != nil {
		return nil, fmt.Errorf("list the applets of busybox: %w", err)
	}
	var links []Entry
	for _, p := range paths {
		p = path.Clean("/" + p)
		own := slices.ContainsFunc(r.m.Entries, func(e Entry) bool { return e.Path == p })
		if p != "/" && p != "/linuxrc" && p != "/sbin/init" && !r.seen[p] && !own {
			links = append(links, Entry{Path: p, Mode: 0o777, Link: r.m.Busybox})
		}
	}
	return links, nil
}

// parseStatus reads the installed packages out of dpkg's status file, sorted by name.
func parseStatus(status []byte) []Package {
	var out []Package
	var p Package
	installed := false
	flush := func() {
		if installed && p.Name != "" {
			out = append(out, p)
		}
		p, installed = Package{}, false
	}
	scan := bufio.NewScanner(bytes.NewReader(status))
	scan.Buffer(nil, len(status)+1)
	for scan.Scan() {
		name, value, _ := strings.Cut(scan.Text(), ":")
		switch value = strings.TrimSpace(value); name {
		case "":
			if scan.Text() == "" {
				flush()
			}
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "Status":
			installed = strings.HasSuffix(value, " installed")
		}
	}
	flush()
	slices.SortFunc(out, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// parseArchives reads package names and versions out of the names of apt's archives:
// name_version_arch.deb, percent-encoded.
func parseArchives(list []byte) []Package {
	var out []Package
	for line := range strings.Lines(string(list)) {
		base, ok := strings.CutSuffix(strings.TrimSpace(line), ".deb")
		fields := strings.Split(base, "_")
		if !ok || len(fields) != 3 {
			continue
		}
		if version, err := url.PathUnescape(fields[1]); err == nil {
			out = append(out, Package{Name: fields[0], Version: version})
		}
	}
	return out
}
