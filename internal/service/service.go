// Package service owns the files by which a host starts banger's daemon: systemd units
// and directories. VMMs run as users without a name, so there is none to be made. It knows where they belong, puts them there, and takes exactly those
// away again; what a daemon does it does not know.
package service

import (
	"bytes"
	"embed"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"banger/internal/config"
)

//go:embed files
var files embed.FS

// File is a file of the host's.
type File struct {
	Path    string // absolute
	Content []byte
}

// Layout is where things are on a host.
type Layout struct {
	Bin   string // the programs
	Lib   string // directory that has the runtime bundle's
	Units string // systemd's directory: systemd/system and systemd/user, tmpfiles.d are below it
	Share string // directory for the example of a config file; empty: none
}

// Prefix is the layout of make install.
func Prefix(prefix string) Layout {
	return Layout{
		Bin: filepath.Join(prefix, "bin"), Lib: filepath.Join(prefix, "lib"), Units: filepath.Join(prefix, "lib"),
		Share: filepath.Join(prefix, "share/doc/banger"),
	}
}

// Local is the layout of a host whose programs are in bin, wherever that is: its
// administrator's directories have the rest.
func Local(bin string) Layout {
	return Layout{Bin: bin, Lib: filepath.Join(filepath.Dir(bin), "lib"), Units: "/etc"}
}

// Files are all files of a layout.
func (l Layout) Files() []File {
	out := []File{
		l.file("system/bangerd.service", "systemd/system"), l.file("system/bangerd.socket", "systemd/system"),
		l.file("user/bangerd.service", "systemd/user"), l.file("user/bangerd.socket", "systemd/user"),
	}
	directories := l.file("tmpfiles.conf", "")
	directories.Path = filepath.Join(l.Units, "tmpfiles.d/banger.conf")
	out = append(out, directories)
	if l.Share != "" {
		out = append(out, File{filepath.Join(l.Share, "config.toml.example"), config.Example()})
	}
	slices.SortFunc(out, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return out
}

func (l Layout) file(name, dir string) File {
	b, err := files.ReadFile("files/" + name)
	if err != nil {
		panic(err) // it is built in
	}
	b = bytes.ReplaceAll(b, []byte("@BINDIR@"), []byte(l.Bin))
	b = bytes.ReplaceAll(b, []byte("@LIBDIR@"), []byte(l.Lib))
	return File{filepath.Join(l.Units, dir, filepath.Base(name)), b}
}

// Owner are the files that let a user have root's daemon, beside whatever else is installed.
func Owner(name string) []File {
	return []File{
		{"/etc/systemd/system/bangerd.service.d/owner.conf", []byte("[Service]\nEnvironment=BANGER_OWNER=" + name + "\n")},
		{"/etc/systemd/system/bangerd.socket.d/owner.conf", []byte("[Socket]\nSocketUser=" + name + "\n")},
	}
}

// Write puts files below root, which is "/" on a host and another directory where a package
// is made.
func Write(root string, files []File) error {
	for _, f := range files {
		path := filepath.Join(root, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := renameio.WriteFile(path, f.Content, 0o644, renameio.IgnoreUmask()); err != nil {
			return err
		}
	}
	return nil
}

// Remove takes files away, and the directories ending in ".d" or named banger that are then
// empty. It returns the paths of those that were there.
func Remove(root string, files []File) (gone []string, err error) {
	for _, f := range files {
		path := filepath.Join(root, f.Path)
		switch rerr := os.Remove(path); {
		case rerr == nil:
			gone = append(gone, f.Path)
		case !errors.Is(rerr, fs.ErrNotExist):
			err = errors.Join(err, rerr)
		}
		if dir := filepath.Dir(path); strings.HasPrefix(filepath.Base(dir), "banger") {
			_ = os.Remove(dir) // it may have files of others
		}
	}
	return gone, err
}
