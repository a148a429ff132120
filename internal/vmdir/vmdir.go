// Package vmdir owns the directories of VMs on the host: one for each, named by the VM's id,
// private to the daemon's user, with a copy of the VM's row beside its disk, logs and
// sockets. What those are it does not know.
package vmdir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/image/shelf"
	"banger/internal/vm"
)

// CopyName is the file with the copy of a VM's row.
const CopyName = "vm.json"

// newSuffix ends the name of a copy that is not finished. A VM's lock is held while it is
// saved, so there is one at most.
const newSuffix = ".new"

// maxCopy bounds a copy that is read back, in bytes; real ones have two thousand.
const maxCopy = 1 << 20

// anID is what a VM's directory is called.
var anID = regexp.MustCompile(`^[0-9a-f]{12}$`)

// Dirs are the VMs' directories below a root, which is made with the first.
type Dirs struct{ Root string }

var _ vm.Dirs = Dirs{}

// Path implements vm.Dirs.
func (d Dirs) Path(id string) string { return filepath.Join(d.Root, id) }

// Make implements vm.Dirs. errs.Unavailable: the filesystem is full or can't be written to.
func (d Dirs) Make(id string) error {
	err := os.MkdirAll(d.Path(id), 0o700)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errs.New(errs.Unavailable, "there is no room for a VM in %s", d.Root).Because(err).
			Try("free some space there: banger rm removes VMs, banger image rm images")
	}
	if err != nil {
		return errs.New(errs.Unavailable, "the VM's directory can't be made").Because(err)
	}
	return nil
}

// Save implements vm.Dirs. The copy is replaced whole, but not flushed: it is only read when
// the database is lost, and a transition must not wait for it.
func (d Dirs) Save(v vm.VM) error {
	doc, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(d.Path(v.ID), CopyName)
	err = os.WriteFile(path+newSuffix, append(doc, '\n'), 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = host.Fault("rename a copy of a row")
	}
	if err == nil {
		err = os.Rename(path+newSuffix, path)
	}
	return err
}

// keptDir has a machine that was saved, with whatever secrets were in its memory.
const keptDir = "kept"

// Keep implements vm.Dirs.
func (d Dirs) Keep(id string) (memory, state *os.File, err error) {
	if err := d.DropKept(id); err != nil {
		return nil, nil, err
	}
	if err := os.Mkdir(filepath.Join(d.Path(id), keptDir), 0o700); err != nil {
		return nil, nil, err
	}
	kept := d.Kept(id)
	if memory, err = os.OpenFile(kept.Memory, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, nil, err
	}
	if state, err = os.OpenFile(kept.State, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, nil, errors.Join(err, memory.Close())
	}
	return memory, state, nil
}

// sumsFile tells what the two were.
const sumsFile = "sums"

// Seal implements vm.Dirs.
func (d Dirs) Seal(id string) error {
	sums, err := d.sums(id)
	if err != nil {
		return err
	}
	dir := filepath.Join(d.Path(id), keptDir)
	f, err := os.OpenFile(filepath.Join(dir, sumsFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(sums)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close(), shelf.SyncDir(dir), shelf.SyncDir(d.Path(id)))
}

// CheckKept implements vm.Dirs.
func (d Dirs) CheckKept(id string) error {
	was, err := os.ReadFile(filepath.Join(d.Path(id), keptDir, sumsFile))
	if errors.Is(err, fs.ErrNotExist) { // kept by an earlier banger
		return nil
	}
	var now string
	if err == nil {
		now, err = d.sums(id)
	}
	if err == nil && now != string(was) {
		err = errors.New("what was kept of its machine has changed since")
	}
	return err
}

func (d Dirs) sums(id string) (text string, err error) {
	kept := d.Kept(id)
	for _, path := range []string{kept.Memory, kept.State} {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		sum, err := disk.Sum(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return "", err
		}
		text += fmt.Sprintf("%08x %s\n", sum, filepath.Base(path))
	}
	return text, nil
}

// Kept implements vm.Dirs.
func (d Dirs) Kept(id string) hypervisor.Saved {
	dir := filepath.Join(d.Path(id), keptDir)
	return hypervisor.Saved{Memory: filepath.Join(dir, "memory"), State: filepath.Join(dir, "state")}
}

// DropKept implements vm.Dirs.
func (d Dirs) DropKept(id string) error {
	return os.RemoveAll(filepath.Join(d.Path(id), keptDir))
}

// Remove implements vm.Dirs.
func (d Dirs) Remove(id string) error {
	return os.RemoveAll(d.Path(id))
}

// List implements vm.Dirs.
func (d Dirs) List() ([]string, error) {
	entries, err := os.ReadDir(d.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// Saved implements vm.Dirs.
func (d Dirs) Saved() (vms []vm.VM, unreadable []string, err error) {
	names, err := d.List()
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		v, err := d.read(name)
		if err != nil {
			unreadable = append(unreadable, name)
			continue
		}
		vms = append(vms, v)
	}
	return vms, unreadable, nil
}

// read reads one copy with suspicion: it is taken for what it says only if that fits.
func (d Dirs) read(name string) (v vm.VM, err error) {
	if !anID.MatchString(name) {
		return v, fmt.Errorf("%q is no VM's directory", name)
	}
	dir, err := os.Lstat(d.Path(name))
	if err != nil {
		return v, err
	}
	path := filepath.Join(d.Path(name), CopyName)
	info, err := os.Lstat(path)
	if err != nil {
		return v, err
	}
	if !dir.IsDir() || !info.Mode().IsRegular() || info.Size() > maxCopy {
		return v, fmt.Errorf("%s is no copy of a VM's row", path)
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		return v, err
	}
	return check(doc, d.Path(name))
}

// check decodes a copy and says whether it can be that of the VM whose directory this is. A
// disk or a machine elsewhere would be somebody else's.
func check(doc []byte, dir string) (v vm.VM, err error) {
	if err := json.Unmarshal(doc, &v); err != nil {
		return vm.VM{}, err
	}
	switch {
	case v.ID != filepath.Base(dir):
		err = fmt.Errorf("the copy in %s is of VM %q", dir, v.ID)
	case !v.State.Valid():
		err = fmt.Errorf("VM %s is in no state that there is: %q", v.ID, v.State)
	case v.Disk.Path != "" && filepath.Dir(v.Disk.Path) != dir:
		err = fmt.Errorf("the disk of VM %s is not in %s: %q", v.ID, dir, v.Disk.Path)
	case v.Machine != nil && (v.Machine.VMID != v.ID || v.Machine.Dir != dir):
		err = fmt.Errorf("the machine of VM %s is that of %q in %q", v.ID, v.Machine.VMID, v.Machine.Dir)
	default:
		err = vm.CheckName(v.Name)
	}
	if err != nil {
		return vm.VM{}, err
	}
	return v, nil
}
