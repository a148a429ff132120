// Package jail owns the confinement of a VMM's process: as whom it runs, what of the host it
// sees, and how much of it it can take. It knows programs, files and limits, and nothing of
// VMs or of any VMM.
//
// A process can be confined wholly only from inside, between its start and the first
// instruction of its program. So what is started is this very program, whose main function
// calls [Main]: in a process that is to be confined that makes the jail, and becomes the
// program in it, under the same pid.
package jail

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
)

// Jail is what a process is confined to.
type Jail struct {
	// Home is a private directory of the process's, whose name is that of no other in the
	// same place. Its root is put together there, where only the process itself sees it.
	Home string

	ID    int    // its uid and gid
	Files []File // what it sees of the host beside its program and that one's libraries
	Work  string // directory that it works in, which leads to some of them; "" is the root

	// HostNetwork leaves it in the host's network. Else it has none, but for descriptors.
	HostNetwork bool

	Limits Limits
}

// File is a file, a directory with all that is in it, or a device, which the process sees at
// the same path.
type File struct {
	Path  string
	Write bool // it may write to it, and then it is the process's own; a device always is
}

// Limits are how much a process may take; 0 is as much as it likes. Those of memory and CPUs,
// and of processes where they are of other users too, need a cgroup (see [Group]).
type Limits struct {
	MemoryBytes int64
	CPUs        int
	Processes   int   // and threads
	FileBytes   int64 // the length of a file that it writes to
	OpenFiles   int
}

// Digits is how many of a name's hexadecimal digits its uid is made of.
const Digits = 7

// ID is the uid and gid for what has this name: 7, and the first hexadecimal digits of the name
// or of a hash of it. Who gives the names sees to it that they differ in those.
func ID(name string) int {
	if len(name) >= Digits {
		if n, err := strconv.ParseUint(name[:Digits], 16, 4*Digits); err == nil {
			return host.FirstUID + int(n)
		}
	}
	sum := sha256.Sum256([]byte(name))
	return host.FirstUID + int(binary.BigEndian.Uint32(sum[:])>>4)
}

// Check tells why processes can't be confined here, or nil.
func Check() error {
	if os.Geteuid() != 0 {
		return errs.New(errs.Unavailable, "only root can confine a process to a user, files and limits of its own")
	}
	return nil
}

// orders are what [Main] is to do.
type orders struct {
	Jail    Jail
	Program string
	View    []string // files that it sees, read-only, beside those of Jail
	Join    join
}

// verb is the first argument of a process that is to be confined.
const verb = "jail"

// Detach starts a program as [host.Detach] does, confined. What it may write to, devices
// excepted, becomes its own; what it may only read all may read, if other users don't get as far
// as that. On error nothing is left but that. errs.Unavailable: only root can do it, or there is
// no such program, or a file may be read by its owner only.
func (j Jail) Detach(d host.Detached) (_ *host.Child, err error) {
	if err := Check(); err != nil {
		return nil, err
	}
	if !ready.Load() {
		return nil, errs.New(errs.Internal, "this program can't confine others, for its main function does not call jail.Main")
	}
	program, err := host.LookPath(d.Path)
	if err != nil {
		return nil, err
	}
	view, err := needs(program)
	if err != nil {
		return nil, err
	}
	for _, f := range j.Files {
		if err := j.grant(f); err != nil {
			return nil, err
		}
	}
	in, err := prepare(j.Home, j.Limits)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(orders{Jail: j, Program: program, View: view, Join: in})
	if err != nil {
		return nil, errors.Join(err, RemoveGroup(j.Home))
	}
	d.Path, d.Args = "/proc/self/exe", append([]string{verb, string(text)}, d.Args...)
	d.Namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWIPC
	if !j.HostNetwork {
		d.Namespaces |= unix.CLONE_NEWNET
	}
	c, err := host.Detach(d)
	if err != nil {
		err = errors.Join(err, RemoveGroup(j.Home))
	}
	return c, err
}

// grant lets the process get at a file.
func (j Jail) grant(f File) error {
	info, err := os.Stat(f.Path)
	if err != nil {
		return err
	}
	const readable = 0o004
	switch {
	case info.Mode()&os.ModeDevice != 0: // it gets a node of its own
		return nil
	case f.Write:
		return os.Chown(f.Path, j.ID, j.ID)
	case info.Mode()&readable != 0:
		return nil
	case !hidden(f.Path):
		return errs.New(errs.Unavailable, "a confined process can't read %s, which only its owner may", f.Path).Try("chmod a+r %s", f.Path)
	}
	return os.Chmod(f.Path, info.Mode().Perm()|readable)
}

// hidden tells that other users don't get as far as the file: that all may read it then makes
// no difference to them.
func hidden(path string) bool {
	for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Lstat(dir); err == nil && info.IsDir() && info.Mode()&0o001 == 0 {
			return true
		}
	}
	return false
}
