package jail

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ready tells that Main has been called: what would a program do that is started again and
// does not know why? A test would test itself, again and again.
var ready atomic.Bool

// Main returns at once, but in a process that is to be confined: that it confines, and has it
// become its program. It is the first thing that a program does that calls [Jail.Detach].
func Main() {
	if len(os.Args) < 3 || os.Args[1] != verb {
		ready.Store(true)
		return
	}
	// Capabilities are a thread's, and the program gets those of the one that becomes it.
	runtime.LockOSThread()
	var o orders
	err := json.Unmarshal([]byte(os.Args[2]), &o)
	if err == nil {
		err = o.carryOut(os.Args[3:])
	}
	fmt.Fprintf(os.Stderr, "the process can't be confined: %v\n", err)
	os.Exit(1)
}

// carryOut does not return but with an error.
func (o orders) carryOut(args []string) error {
	// Whatever the daemon's is: the process is to get through its root's directories.
	unix.Umask(0o022)
	if err := o.Join.enter(o.Jail.Home, o.Jail.Limits); err != nil {
		return err
	}
	// What is mounted from here on, nobody else sees, and the other way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("leave the host's mounts: %w", err)
	}
	var parts []part
	for _, path := range o.View {
		p, err := take(File{Path: path})
		if err != nil {
			return err
		}
		parts = append(parts, p)
	}
	for _, f := range o.Jail.Files {
		p, err := take(f)
		if err != nil {
			return err
		}
		parts = append(parts, p)
	}
	if err := o.Jail.buildRoot(parts); err != nil {
		return err
	}
	if err := o.Jail.enter(); err != nil {
		return err
	}
	return unix.Exec(o.Program, append([]string{o.Program}, args...), os.Environ())
}

// part is a part of the root to be.
type part struct {
	path   string
	isDir  bool
	tree   int // a mount that is nowhere yet, unless it is a device
	device uint64
	mode   uint32 // of a device
}

// take gets hold of a file of the host's.
func take(f File) (part, error) {
	fail := func(err error) (part, error) { return part{}, fmt.Errorf("take %s: %w", f.Path, err) }
	tree, err := unix.OpenTree(unix.AT_FDCWD, f.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fail(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return fail(err)
	}
	p := part{path: f.Path, tree: tree}
	switch kind := st.Mode & unix.S_IFMT; kind {
	case unix.S_IFBLK, unix.S_IFCHR:
		p.device, p.mode = st.Rdev, kind|0o600
		return p, unix.Close(tree)
	case unix.S_IFDIR:
		p.isDir = true
	}
	flags := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if f.Write {
		flags |= unix.MOUNT_ATTR_NOEXEC
	} else {
		flags |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: flags}); err != nil {
		return fail(err)
	}
	return p, nil
}

// buildRoot mounts at the process's home a filesystem in memory that has the parts, and
// nothing that could be written to beside them.
func (j Jail) buildRoot(parts []part) error {
	if err := unix.Mount("jail", j.Home, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=64k"); err != nil {
		return fmt.Errorf("mount a root: %w", err)
	}
	for _, p := range parts {
		if err := j.add(p); err != nil {
			return fmt.Errorf("give it %s: %w", p.path, err)
		}
	}
	return unix.MountSetattr(unix.AT_FDCWD, j.Home, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

func (j Jail) add(p part) error {
	at := filepath.Join(j.Home, p.path)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	if p.mode != 0 {
		return errors.Join(unix.Mknod(at, p.mode, int(p.device)), os.Chown(at, j.ID, j.ID))
	}
	var err error
	if p.isDir {
		err = os.MkdirAll(at, 0o755)
	} else {
		err = os.WriteFile(at, nil, 0o444)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	defer unix.Close(p.tree)
	return unix.MoveMount(p.tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// enter makes the home the root, and gives up what the process may not have.
func (j Jail) enter() error {
	if err := unix.Chdir(j.Home); err != nil {
		return err
	}
	// The old root comes to lie upon the new one, and is taken off it.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	if err := unix.Chdir(cmp.Or(j.Work, "/")); err != nil {
		return fmt.Errorf("go to where it works: %w", err)
	}
	if err := j.Limits.set(); err != nil {
		return fmt.Errorf("set limits: %w", err)
	}
	if err := j.drop(); err != nil {
		return fmt.Errorf("give up being root: %w", err)
	}
	return forbidLoops()
}

func (l Limits) set() error {
	// A core would hold a guest's memory.
	all := map[int]uint64{unix.RLIMIT_CORE: 0}
	for resource, limit := range map[int]int64{unix.RLIMIT_FSIZE: l.FileBytes, unix.RLIMIT_NOFILE: int64(l.OpenFiles), unix.RLIMIT_NPROC: int64(l.Processes)} {
		if limit > 0 {
			all[resource] = uint64(limit)
		}
	}
	for resource, limit := range all {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return err
		}
	}
	return nil
}

// drop gives up all privileges for good.
func (j Jail) drop() error {
	for c := uintptr(0); ; c++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break // there are no more
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return err
		}
	}
	err := unix.Setgroups(nil)
	if err == nil {
		err = unix.Setresgid(j.ID, j.ID, j.ID)
	}
	if err == nil {
		err = unix.Setresuid(j.ID, j.ID, j.ID) // and with it what capabilities there were, but the inheritable
	}
	if err == nil {
		var none [2]unix.CapUserData // the kernel's version 3 has 64 bits in two
		err = unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
	}
	if err == nil {
		err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	return err
}
