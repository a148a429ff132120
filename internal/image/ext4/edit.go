package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
)

// Check repairs what a filesystem needs that was not unmounted, and refuses one that is
// damaged. errs.Invalid
func Check(ctx context.Context, fs string) error {
	err := host.Run(ctx, host.Command{Path: "e2fsck", Args: []string{"-f", "-p", fs}})
	if exit, ok := errors.AsType[*host.ExitError](err); ok && exit.Code&^(repaired|unmounted) == 0 {
		return nil
	} else if ok {
		return errs.New(errs.Invalid, "the filesystem is damaged, or is no ext4").Because(err)
	}
	return err
}

// Exit codes of e2fsck that tell of success.
const (
	repaired  = 1
	unmounted = 2 // it wants a restart, had the filesystem been mounted
)

// File is an entry of a directory in a filesystem.
type File struct {
	Path string
	Mode uint32 // as st_mode
}

// IsRegular tells a regular file.
func (f File) IsRegular() bool { return f.Mode&unix.S_IFMT == unix.S_IFREG }

// IsDir tells a directory.
func (f File) IsDir() bool { return f.Mode&unix.S_IFMT == unix.S_IFDIR }

// plainPath is what is passed on to debugfs. Whoever made the filesystem chose its names, and
// debugfs reads commands line by line: no other characters than these ever get there.
var plainPath = regexp.MustCompile(`^/[A-Za-z0-9._@+:~/-]*$`)

// ReadDir lists the directory dir of the filesystem; names with other characters than usual
// ones are left out. A directory that is not there is empty.
func ReadDir(ctx context.Context, fs, dir string) ([]File, error) {
	if !plainPath.MatchString(dir) {
		return nil, nil
	}
	out, err := host.Output(ctx, host.Command{Path: "debugfs", Args: []string{"-R", "ls -p " + dir, fs}})
	if err != nil {
		return nil, err
	}
	return parseListing(dir, string(out)), nil
}

// parseListing reads what debugfs says of the files in dir: /inode/mode/uid/gid/name/size/ in lines.
func parseListing(dir, listing string) (files []File) {
	for line := range strings.Lines(listing) {
		fields := strings.Split(strings.TrimSpace(line), "/")
		if len(fields) != 8 || fields[5] == "" || fields[5] == "." || fields[5] == ".." || fields[1] == "0" {
			continue
		}
		mode, err := strconv.ParseUint(fields[2], 8, 32)
		if p := path.Join(dir, fields[5]); err == nil && plainPath.MatchString(p) {
			files = append(files, File{p, uint32(mode)})
		}
	}
	return files
}

// ReadFile returns the content of a file in the filesystem; none if it is not there.
// errs.Invalid if it has more than limit bytes.
func ReadFile(ctx context.Context, fs, file string, limit int) ([]byte, error) {
	out := &limited{left: limit}
	err := host.Run(ctx, host.Command{Path: "debugfs", Args: []string{"-R", "cat " + file, fs}, Stdout: out})
	if out.left < 0 {
		return nil, errs.New(errs.Invalid, "%s in the image has more than %d bytes", file, limit)
	}
	return out.Bytes(), err
}

// limited keeps what is written to it, but for more than its limit: then left is negative.
type limited struct {
	bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left >= 0 {
		l.Buffer.Write(p)
	}
	return len(p), nil
}

// Edit takes files away and makes files empty, which keep their owners and modes.
func Edit(ctx context.Context, fs string, remove, empty []string) error {
	var script strings.Builder
	for _, p := range remove {
		if plainPath.MatchString(p) {
			fmt.Fprintf(&script, "rm %s\n", p)
		}
	}
	for _, p := range empty {
		if plainPath.MatchString(p) {
			fmt.Fprintf(&script, "punch %s 0\nset_inode_field %s size 0\n", p, p)
		}
	}
	if script.Len() == 0 {
		return nil
	}
	return host.Run(ctx, host.Command{Path: "debugfs", Args: []string{"-w", "-f", "/dev/stdin", fs}, Stdin: strings.NewReader(script.String())})
}

// maxOverwrite bounds the files that Overwrite reads, in bytes.
const maxOverwrite = 64 << 10

// Overwrite lets change alter the bytes of a small regular file in place; it may not change
// their number. A file that is not there, is large or has holes is passed over.
func Overwrite(ctx context.Context, fs, file string, change func([]byte)) error {
	content, err := ReadFile(ctx, fs, file, maxOverwrite)
	if errs.KindOf(err) == errs.Invalid || len(content) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	was := string(content)
	change(content)
	if string(content) == was {
		return nil
	}
	out, err := host.Output(ctx, host.Command{Path: "debugfs", Args: []string{"-R", "blocks " + file, fs}})
	if err != nil {
		return err
	}
	blocks := strings.Fields(string(out))
	if len(blocks) != (len(content)+blockBytes-1)/blockBytes {
		return nil
	}
	f, err := os.OpenFile(fs, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for i, b := range blocks {
		n, err := strconv.ParseInt(b, 10, 64)
		if err != nil {
			return fmt.Errorf("debugfs says that %s is in block %q", file, b)
		}
		part := content[i*blockBytes : min(len(content), (i+1)*blockBytes)]
		there := make([]byte, len(part))
		if _, err := f.ReadAt(there, n*blockBytes); err != nil {
			return err
		}
		if string(there) != was[i*blockBytes:i*blockBytes+len(part)] { // another block size, say
			return fmt.Errorf("%s is not where debugfs says", file)
		}
		if _, err := f.WriteAt(part, n*blockBytes); err != nil {
			return err
		}
	}
	return f.Sync()
}
