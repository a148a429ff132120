package dns

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/fsnotify/fsnotify"
)

// The files that tell the host's resolvers.
const (
	ResolvConf = "/etc/resolv.conf"

	// ResolvedConf is where systemd-resolved lists its upstreams when the other file names
	// only itself.
	ResolvedConf = "/run/systemd/resolve/resolv.conf"
)

// maxResolvConf bounds, in bytes, how much of such a file is read.
const maxResolvConf = 64 << 10

// HostResolvers are the resolvers that the host itself uses, followed as they change.
type HostResolvers struct {
	files   [2]string // ResolvConf and ResolvedConf
	log     *slog.Logger
	servers atomic.Pointer[[]netip.AddrPort]
	watcher *fsnotify.Watcher
	done    sync.WaitGroup
}

// WatchHostResolvers reads the host's resolvers from resolvConf, or from resolvedConf where
// that names only systemd-resolved, and follows both until Close.
func WatchHostResolvers(resolvConf, resolvedConf string, log *slog.Logger) (*HostResolvers, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch the host's resolvers: %w", err)
	}
	h := &HostResolvers{files: [2]string{resolvConf, resolvedConf}, log: log, watcher: w}
	h.watch()
	h.read()
	h.done.Go(h.follow)
	return h, nil
}

// Servers implements Resolvers.
func (h *HostResolvers) Servers() []netip.AddrPort { return *h.servers.Load() }

// Close ends the watch.
func (h *HostResolvers) Close() error {
	err := h.watcher.Close()
	h.done.Wait()
	return err
}

// watch watches the files, which may be written in place (where they are bind mounts, in a
// container, that is all one sees), and the directories in which they, or what they are links
// to, may be replaced or come to be. It is called again after each event.
func (h *HostResolvers) watch() {
	for _, file := range h.files {
		for _, p := range places(file) {
			if err := h.watcher.Add(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
				h.log.Warn("watch the host's resolvers", "path", p, "err", err)
			}
		}
	}
}

// places are the file, the links that lead to it, and the directory of each: the nearest one
// that is there.
func places(file string) (all []string) {
	const maxLinks = 8
	for range maxLinks {
		if _, err := os.Lstat(file); err == nil {
			all = append(all, file)
		}
		dir := filepath.Dir(file)
		for dir != "/" && !isDir(dir) {
			dir = filepath.Dir(dir)
		}
		all = append(all, dir)
		target, err := os.Readlink(file)
		if err != nil {
			break // no link
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(file), target)
		}
		file = target
	}
	return all
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// follow reads the files again whenever something happens beside them: that is rare, and
// they are small.
func (h *HostResolvers) follow() {
	for {
		select {
		case _, open := <-h.watcher.Events:
			if !open {
				return
			}
		case err, open := <-h.watcher.Errors:
			if !open {
				return
			}
			h.log.Warn("watch the host's resolvers", "err", err) // events were lost, perhaps
		}
		h.watch() // first: what changes from here on is seen
		h.read()
	}
}

// read reads the files anew. While one is being replaced the last known servers hold.
func (h *HostResolvers) read() {
	servers, err := readServers(h.files[0])
	if err == nil && stubOnly(servers) {
		servers, err = readServers(h.files[1])
		servers = slices.DeleteFunc(servers, func(s netip.AddrPort) bool { return slices.Contains(stubs, s.Addr()) })
	}
	if err != nil && h.servers.Load() != nil {
		h.log.Warn("read the host's resolvers", "err", err)
		return
	}
	h.servers.Store(&servers)
}

func readServers(file string) ([]netip.AddrPort, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	if err != nil {
		return nil, err
	}
	return parseResolvConf(string(text)), nil
}
