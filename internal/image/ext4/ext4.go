// Package ext4 makes ext4 filesystems, out of directories or of files that come one after
// another, and reads them. It owns how mkfs.ext4 is called and what of the format banger
// writes and reads itself: nothing is ever mounted, no privilege is needed, and files are
// sparse. It knows nothing of what is in the directories, or where the files come from.
package ext4

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"banger/internal/host"
)

const (
	blockBytes = 4096
	inodeBytes = 256
	// growBlocks is how far a root filesystem may grow while mounted without moving
	// anything: 1 TiB. It costs half a MiB in each copy of the group descriptors.
	growBlocks = MaxBytes / blockBytes
	// madeAt is the time in the superblock, seconds since 1970: a fixed one, so that equal
	// trees give equal superblocks.
	madeAt = "1700000000"
)

// MaxBytes is the size of the largest root filesystem.
const MaxBytes = 1 << 40

// MakeReadOnly makes a filesystem at path that is as small as fits the tree dir and is
// never written to: no journal, nothing reserved. All files in it belong to root if dir's
// belong to the caller.
func MakeReadOnly(ctx context.Context, dir, path, seed string) error {
	bytes, inodes, err := measure(dir)
	if err != nil {
		return fmt.Errorf("measure %s: %w", dir, err)
	}
	var prefix []string
	if os.Geteuid() != 0 {
		prefix = []string{"unshare", "--user", "--map-root-user"}
	}
	return makeFS(ctx, prefix, dir, path, bytes, seed,
		"-O", "^has_journal,^resize_inode", "-N", strconv.FormatInt(inodes, 10), "-m", "0", "-L", "modules")
}

// measure returns the size of a filesystem that holds the tree dir, and its inodes.
func measure(dir string) (bytes, inodes int64, err error) {
	inodes = 16 // the filesystem's own
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		inodes++
		bytes += (info.Size() + blockBytes - 1) / blockBytes * blockBytes
		return nil
	})
	// Inode tables are rounded up in each group of 128 MiB, and each has bitmaps; 3 % is
	// beyond what they take and costs nothing in a sparse file.
	bytes += inodes*inodeBytes + bytes/32 + 1<<20
	return bytes / blockBytes * blockBytes, inodes, err
}

func makeFS(ctx context.Context, prefix []string, dir, path string, bytes int64, seed string, extraArgs ...string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(bytes); err != nil {
		return err
	}
	argv := append(extraArgs[:len(extraArgs):len(extraArgs)], "-d", dir)
	if err := mkfs(ctx, prefix, path, uuidOf(seed), "", argv...); err != nil {
		return err
	}
	return f.Sync()
}

// mkfs calls mkfs.ext4 on the file path, which has the filesystem's size and only zeros.
func mkfs(ctx context.Context, prefix []string, path, uuid, extended string, args ...string) error {
	program, err := host.LookPath("mkfs.ext4")
	if err != nil {
		return err
	}
	argv := append(slices.Clone(prefix), program, "-q", "-F", "-b", strconv.Itoa(blockBytes), "-I", strconv.Itoa(inodeBytes), "-U", uuid,
		// Nothing is left for the guest's kernel to initialise: it would do that in the
		// background, into the overlay of every VM. On a file the discard makes holes that
		// read as zeros, so the tables are not written here either.
		"-E", "discard,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed="+uuid+extended)
	argv = append(append(argv, args...), path)
	return host.Run(ctx, host.Command{Path: argv[0], Args: argv[1:], Env: fixedTime()})
}

// fixedTime is the environment in which e2fsprogs takes it to be madeAt.
func fixedTime() []string { return append(os.Environ(), "E2FSPROGS_FAKE_TIME="+madeAt) }

// uuidOf derives a UUID (version 8: custom) from a text.
func uuidOf(seed string) string {
	h := sha256.Sum256([]byte(seed))
	h[6] = h[6]&0x0f | 0x80
	h[8] = h[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}
