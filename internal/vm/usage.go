package vm

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
)

// settledAfter is how long a file must not have changed before its times tell of every change:
// the clock that the kernel stamps files with stands still for some milliseconds.
const settledAfter = time.Second

// usages remembers what disks take that nobody has written to since they were looked into. The
// zero value is ready.
type usages struct {
	mu    sync.Mutex
	known map[string]usage // by the path of the volume
}

type usage struct {
	file stamp
	disk.Usage
}

// stamp tells a file apart from any other and from what it was at another time.
type stamp struct {
	dev, inode     uint64
	bytes, blocks  int64
	written, moved unix.Timespec // its mtime and ctime
}

func stampOf(path string) (stamp, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return stamp{st.Dev, st.Ino, st.Size, st.Blocks, st.Mtim, st.Ctim}, err
}

// of returns what look says of a volume, or has said of the same file.
func (u *usages) of(v disk.Volume, look func(disk.Volume) (disk.Usage, error)) (disk.Usage, error) {
	file, err := stampOf(v.Path)
	if err != nil { // whoever looks can say it better
		return look(v)
	}
	u.mu.Lock()
	known, ok := u.known[v.Path]
	u.mu.Unlock()
	if ok && known.file == file {
		return known.Usage, nil
	}
	now, err := look(v)
	if err == nil && time.Since(time.Unix(file.moved.Unix())) > settledAfter {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.known == nil {
			u.known = map[string]usage{}
		}
		u.known[v.Path] = usage{file, now}
	}
	return now, err
}

// forget drops what is remembered of a volume that is gone.
func (u *usages) forget(v disk.Volume) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.known, v.Path)
}
