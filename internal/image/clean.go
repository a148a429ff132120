package image

import (
	"bytes"
	"context"
	"path"
	"slices"
	"strings"

	"banger/internal/image/ext4"
)

// Tidy makes a filesystem that a machine has used, and nobody has mounted now, fit to be an
// image: whole, without the mounts of the old layout and, unless keep is set, without what
// belongs to that machine. It returns the Debian packages in it.
func Tidy(ctx context.Context, fs string, keep bool) ([]Package, error) {
	if err := ext4.Check(ctx, fs); err != nil {
		return nil, err
	}
	if err := ScrubFstab(ctx, fs); err != nil {
		return nil, err
	}
	if !keep {
		if err := clean(ctx, fs); err != nil {
			return nil, err
		}
	}
	status, err := ext4.ReadFile(ctx, fs, statusFile, maxListBytes)
	return parseStatus(status), err
}

// What belongs to the machine that a filesystem was part of, and not to its next one.
var (
	emptied = []string{"/etc/machine-id", "/etc/hostname"}
	// removed are files, by patterns of path.Match.
	removed = []string{
		"/etc/ssh/ssh_host_*", "/var/lib/dbus/machine-id", "/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret",
		"/var/lib/dhcp/*", "/var/lib/dhcpcd/*", "/var/lib/dhclient/*", "/var/lib/NetworkManager/*", "/var/lib/systemd/timers/*",
		"/var/log/journal/*/*",
	}
	histories = []string{".bash_history", ".ash_history", ".zsh_history", ".sh_history", ".python_history", ".lesshst", ".viminfo", ".wget-hsts"}
)

const (
	logDir   = "/var/log"
	logDepth = 4 // how far below logDir logs are looked for
)

// clean takes away what belongs to a machine: machine-id, host name and keys, leases, logs,
// shell histories.
func clean(ctx context.Context, fs string) error {
	c := cleaner{ctx: ctx, fs: fs, listed: map[string][]ext4.File{}}
	var remove, empty []string
	for _, p := range emptied {
		empty = append(empty, c.match(p)...)
	}
	for _, p := range removed {
		remove = append(remove, c.match(p)...)
	}
	for _, home := range append(c.dirs("/home"), "/root") {
		for _, h := range histories {
			remove = append(remove, c.match(path.Join(home, h))...)
		}
	}
	for _, p := range c.below(logDir, logDepth) {
		if !slices.Contains(remove, p) {
			empty = append(empty, p)
		}
	}
	if c.err != nil {
		return c.err
	}
	return ext4.Edit(ctx, fs, remove, empty)
}

// cleaner looks into a filesystem, at each directory once.
type cleaner struct {
	ctx    context.Context
	fs     string
	listed map[string][]ext4.File
	err    error // the first
}

func (c *cleaner) list(dir string) []ext4.File {
	files, ok := c.listed[dir]
	if !ok && c.err == nil {
		files, c.err = ext4.ReadDir(c.ctx, c.fs, dir)
		c.listed[dir] = files
	}
	return files
}

// match returns the regular files that a pattern means.
func (c *cleaner) match(pattern string) (found []string) {
	dirs := []string{path.Dir(pattern)}
	if parent := path.Dir(dirs[0]); strings.Contains(dirs[0], "*") {
		dirs = c.dirs(parent)
	}
	for _, dir := range dirs {
		for _, f := range c.list(dir) {
			if ok, _ := path.Match(pattern, f.Path); ok && f.IsRegular() { // the patterns are well-formed
				found = append(found, f.Path)
			}
		}
	}
	return found
}

// dirs returns the directories in dir.
func (c *cleaner) dirs(dir string) (found []string) {
	for _, f := range c.list(dir) {
		if f.IsDir() {
			found = append(found, f.Path)
		}
	}
	return found
}

// below returns the regular files below dir.
func (c *cleaner) below(dir string, depth int) (found []string) {
	for _, f := range c.list(dir) {
		switch {
		case f.IsRegular():
			found = append(found, f.Path)
		case f.IsDir() && depth > 1:
			found = append(found, c.below(f.Path, depth-1)...)
		}
	}
	return found
}

// ScrubFstab makes comments of the lines in the filesystem's fstab that mount the disks of
// the old layout, which had /home and /var on disks of their own: another disk is in their
// place now. Whatever else mounts something there stays.
func ScrubFstab(ctx context.Context, fs string) error {
	return ext4.Overwrite(ctx, fs, "/etc/fstab", scrubFstab)
}

func scrubFstab(fstab []byte) {
	for len(fstab) > 0 {
		line := fstab
		if end := bytes.IndexByte(fstab, '\n'); end >= 0 {
			line = fstab[:end+1]
		}
		fstab = fstab[len(line):]
		fields := strings.Fields(string(line))
		if len(fields) >= 3 && (fields[0] == "/dev/vdb" || fields[0] == "/dev/vdc") && (fields[1] == "/home" || fields[1] == "/var") {
			line[0] = '#' // of "/dev", or of the blanks before it
		}
	}
}
