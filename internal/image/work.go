package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/image/shelf"
)

// workMark and a directory of work are in the environment of all that unpacks packages for it, and goes on when
// this process is killed.
const workMark = "BANGER_WORK="

// outside is where packages are unpacked for the work in dir by a user whose subordinate ids may not be able to
// reach that.
func outside(dir string) string { return filepath.Join("/var/tmp", "banger"+filepath.Base(dir)) }

func makeOutside(dir string) (string, error) {
	path := outside(dir)
	if err := os.Mkdir(path, 0o711); err != nil {
		return "", err
	}
	return path, os.Chmod(path, 0o711) // whatever the umask
}

// cleanupLimit bounds how long the removal of work may take.
const cleanupLimit = 2 * time.Minute

// removeWork removes a directory of work, and ends what may still be at it. It also does so after ctx is done.
func removeWork(ctx context.Context, dir string) error {
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	err := host.KillMarked(bound, workMark+dir)
	if info, there := os.Lstat(outside(dir)); there == nil && info.IsDir() && info.Sys().(*syscall.Stat_t).Uid == uint32(os.Geteuid()) {
		err = errors.Join(err, removeTree(ctx, outside(dir)))
	}
	return errors.Join(err, removeTree(ctx, dir))
}

// ownIDs is the command that enters a namespace where root is this user and the image's
// other users are the user's subordinate ids.
func ownIDs() []string { return []string{"unshare", "--user", "--map-root-user", "--map-auto"} }

// removeTree removes a tree whose files may belong to subordinate ids. It also does so
// after ctx is done. errs.Conflict if something is mounted there, which would go as well.
func removeTree(ctx context.Context, tree string) error {
	mounts, err := host.MountsBelow(tree)
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return errs.New(errs.Conflict, "%s can't be removed: something is mounted at %s", tree, mounts[0]).
			Try("unmount it, or restart this host; then: banger system prune")
	}
	err = os.RemoveAll(tree)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	argv := append(ownIDs(), "rm", "-rf", tree)
	return host.Run(ctx, host.Command{Path: argv[0], Args: argv[1:]})
}

// Sweep removes what builds that were killed have left below root. The caller makes sure
// that none is at work there.
func Sweep(ctx context.Context, root string) error {
	left, err := shelf.Leftovers(root)
	for _, dir := range left {
		err = errors.Join(err, removeWork(ctx, dir))
	}
	return err
}

// RemoveLeftover removes one of [Store.Leftovers], or of a shelf's.
func RemoveLeftover(ctx context.Context, path string) error { return removeWork(ctx, path) }
