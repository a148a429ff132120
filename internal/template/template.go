// Package template owns saved machines as directories of files: what one consists of, that it
// appears whole or not at all, that damage to it is found before it is used, and, of those
// that are a cache, which go first when there are too many. It knows nothing of how machines are saved, of VMs, or of
// which VMs need what.
package template

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/image/shelf"
)

// The files of a template, besides its disk.
const (
	memoryFile = "memory"
	stateFile  = "state"
	recordFile = "template.json"
	sumFile    = "template.sum" // of the record
	markFile   = "snapshot"     // of a snapshot, which is one also where its record can't be read
)

// Template is a machine that was saved: when it had finished its boot, or, as a snapshot, whenever
// someone wanted it.
type Template struct {
	Name string `json:"-"`
	Dir  string `json:"-"`
	Key  string `json:"key"` // of all that a VM must have in common with it to go on from it

	Machine string `json:"machine"` // key of its machine alone

	Image       string `json:"image"`
	Kernel      string `json:"kernel"`
	CPUs        int    `json:"cpus"`
	MemoryBytes int64  `json:"memory_bytes"`
	Net         string `json:"net"`
	Accel       string `json:"accel"`

	From disk.Base `json:"from"`          // what its disk was made of; a whole disk does not lie on it any more
	MAC  string    `json:"mac,omitempty"` // of its network device
	Disk disk.Base `json:"disk"`          // as it was at that moment

	Snapshot bool            `json:"snapshot,omitempty"` // kept until its owner removes it, and only gone on from by those who name it
	Damaged  string          `json:"-"`                  // of a snapshot: why nothing else is known of it than its name
	Fleeting bool            `json:"fleeting,omitempty"` // of a snapshot: made for copies that are made at once
	Of       string          `json:"of,omitempty"`       // of a snapshot: name of the VM that it is of
	Spec     json.RawMessage `json:"spec,omitempty"`     // of a snapshot: what that VM was asked to be

	Bytes     int64             `json:"bytes"` // what its files take
	Sums      map[string]uint32 `json:"sums"`  // of its files, by name
	CreatedAt time.Time         `json:"created_at"`
	UsedAt    time.Time         `json:"-"`
}

// Saved is what a machine goes on from.
func (t Template) Saved() *hypervisor.Saved {
	return &hypervisor.Saved{Memory: filepath.Join(t.Dir, memoryFile), State: filepath.Join(t.Dir, stateFile)}
}

// Shelf is the place of templates.
type Shelf struct {
	Root string

	mu      sync.Mutex
	checked map[string]stamp // files that were found good, by path
}

var items = shelf.Shelf{Kind: "template", Record: recordFile}

// Stage is a template in the making.
type Stage struct {
	Name, Dir     string
	Memory, State *os.File // empty, to be filled
	stage         *shelf.Stage
}

// Begin starts a template of that name. Its files hold secrets: only their owner reads them.
func (s *Shelf) Begin(name string) (*Stage, error) {
	if err := host.Fault("begin a template"); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.Root, 0o700); err != nil {
		return nil, err
	}
	stage, err := items.Begin(s.Root, name, false)
	if err != nil {
		return nil, err
	}
	st := &Stage{Name: name, Dir: stage.Dir, stage: stage}
	for file, name := range map[**os.File]string{&st.Memory: memoryFile, &st.State: stateFile} {
		if *file, err = os.OpenFile(filepath.Join(st.Dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return nil, errors.Join(err, st.Discard())
		}
	}
	return st, nil
}

// Discard takes away what has not been committed.
func (st *Stage) Discard() error {
	for _, f := range []*os.File{st.Memory, st.State} {
		if f != nil {
			f.Close()
		}
	}
	return st.stage.Discard()
}

// Commit puts the template on the shelf, where it survives a power cut. t.Disk is a volume in
// the stage's directory.
func (s *Shelf) Commit(ctx context.Context, st *Stage, t Template) (Template, error) {
	t.Sums = map[string]uint32{}
	for _, name := range t.files() {
		if err := ctx.Err(); err != nil {
			return t, err
		}
		sum, err := syncAndSum(filepath.Join(st.Dir, name))
		if err != nil {
			return t, err
		}
		t.Sums[name] = sum
	}
	if err := syncFile(filepath.Join(st.Dir, filepath.Base(t.Disk.Path))); err != nil { // a whole one has no sum
		return t, err
	}
	var err error
	if t.Bytes, err = st.stage.Bytes(); err != nil {
		return t, err
	}
	if t.Snapshot {
		if err := st.stage.Write(markFile, nil); err != nil {
			return t, err
		}
	}
	final := filepath.Join(s.Root, t.Name)
	t.Disk.Path = filepath.Join(final, filepath.Base(t.Disk.Path))
	if err := host.Fault("commit a template"); err != nil {
		return t, err
	}
	record, err := json.MarshalIndent(t, "", "  ")
	if err == nil {
		err = st.stage.Write(sumFile, sumOfRecord(record))
	}
	if err == nil {
		_, err = st.stage.Commit(json.RawMessage(record))
	}
	t.Dir = final
	return t, err
}

// sumOfRecord is what tells whether a record is as it was written.
func sumOfRecord(record []byte) []byte {
	return fmt.Appendf(nil, "%08x\n", crc32.Checksum(bytes.TrimSpace(record), crc32.MakeTable(crc32.Castagnoli)))
}

// files are those whose content is told by a sum. A whole raw disk is as large as an image, and
// trusted as that is.
func (t Template) files() []string {
	names := []string{memoryFile, stateFile}
	if t.Disk.On != nil {
		names = append(names, filepath.Base(t.Disk.Path))
	}
	return names
}

// List returns the templates that there are, the last used first. Damaged ones are left out, but
// for snapshots, which are no cache.
func (s *Shelf) List() ([]Template, error) {
	dirs, err := items.List(s.Root)
	if err != nil {
		return nil, err
	}
	var all []Template
	for _, dir := range dirs {
		t, err := load(dir)
		if err == nil {
			all = append(all, t)
		} else if _, unmarked := os.Lstat(filepath.Join(dir, markFile)); unmarked == nil {
			all = append(all, Template{Name: filepath.Base(dir), Dir: dir, Snapshot: true, Damaged: err.Error()})
		}
	}
	slices.SortFunc(all, func(a, b Template) int { return b.UsedAt.Compare(a.UsedAt) })
	return all, nil
}

func load(dir string) (Template, error) {
	t := Template{Name: filepath.Base(dir), Dir: dir}
	record, err := items.Load(dir, &t)
	if err != nil {
		return t, err
	}
	sum, err := os.ReadFile(filepath.Join(dir, sumFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // an earlier banger wrote none
		return t, err
	}
	if err == nil && !bytes.Equal(sum, sumOfRecord(record)) {
		return t, errs.New(errs.Internal, "the record of template %s has changed", t.Name)
	}
	info, err := os.Stat(filepath.Join(dir, recordFile))
	if err != nil {
		return t, err
	}
	t.UsedAt = info.ModTime().UTC()
	return t, nil
}

// Retired tells of a template that nothing goes on from any more, while its disk is still needed.
func (t Template) Retired() bool {
	if t.Damaged != "" {
		return false // nobody has asked for that
	}
	_, err := os.Lstat(filepath.Join(t.Dir, stateFile))
	return errors.Is(err, os.ErrNotExist)
}

// Find returns a template with this key. errs.NotFound if there is none.
func (s *Shelf) Find(key string) (Template, error) {
	all, err := s.List()
	if err != nil {
		return Template{}, err
	}
	for _, t := range all {
		if t.Key == key && !t.Snapshot && !t.Retired() {
			return t, nil
		}
	}
	return Template{}, errs.New(errs.NotFound, "there is no template for this machine yet")
}

// Get returns the template of that name. errs.NotFound if there is none.
func (s *Shelf) Get(name string) (Template, error) {
	dir, err := items.Find(name, s.Root)
	if err != nil {
		return Template{}, err
	}
	return load(dir)
}

// Below returns the names of the templates, damaged ones too, whose disk a base is or lies on.
func (s *Shelf) Below(b disk.Base) (names []string) {
	for x := &b; x != nil; x = x.On {
		if dir := filepath.Dir(x.Path); filepath.Dir(dir) == s.Root {
			names = append(names, filepath.Base(dir))
		}
	}
	return names
}

// Use records that a machine goes on from a template.
func (s *Shelf) Use(t Template) error {
	now := time.Now()
	return os.Chtimes(filepath.Join(t.Dir, recordFile), now, now)
}

// Retire keeps all machines from going on from a template, and leaves its disk.
func (s *Shelf) Retire(t Template) error {
	if err := host.Fault("retire a template"); err != nil {
		return err
	}
	var all []error
	for _, name := range []string{stateFile, memoryFile} {
		if err := os.Remove(filepath.Join(t.Dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// Remove takes the template of that name away, damaged or not. Finding none is success.
func (s *Shelf) Remove(name string) error {
	if err := host.Fault("remove a template"); err != nil {
		return err
	}
	err := items.Remove(s.Root, name)
	if errs.KindOf(err) == errs.NotFound {
		return nil
	}
	return err
}

// Names returns what all templates are called, damaged ones too.
func (s *Shelf) Names() ([]string, error) {
	dirs, err := items.List(s.Root)
	for i, dir := range dirs {
		dirs[i] = filepath.Base(dir)
	}
	return dirs, err
}

// Leftovers returns what templates that were never finished have left, and the stages of
// those that are being made.
func (s *Shelf) Leftovers() ([]string, error) { return shelf.Leftovers(s.Root) }

// stamp changes with a file's content, unless someone takes pains that it does not.
type stamp struct {
	inode        uint64
	bytes        int64
	changed, mod syscall.Timespec
}

// Check reads the template's files, unless it has read them as they are before, and tells
// whether one is not what it was. errs.Internal
func (s *Shelf) Check(t Template) error {
	for _, name := range t.files() {
		if err := s.checkFile(filepath.Join(t.Dir, name), t.Sums[name]); err != nil {
			return errs.New(errs.Internal, "the template %s is damaged", t.Name).Because(err)
		}
	}
	if err := t.Disk.Check(); err != nil {
		return errs.New(errs.Internal, "the disk of template %s can't be read", t.Name).Because(err)
	}
	return nil
}

func (s *Shelf) checkFile(path string, want uint32) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	now := stamp{st.Ino, st.Size, st.Ctim, st.Mtim}
	s.mu.Lock()
	known := s.checked[path] == now
	s.mu.Unlock()
	if known {
		return nil
	}
	sum, err := disk.Sum(f)
	if err != nil {
		return err
	}
	if sum != want {
		return fmt.Errorf("%s has changed: its sum is %08x, and was %08x", path, sum, want)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.checked == nil {
		s.checked = map[string]stamp{}
	}
	s.checked[path] = now
	return nil
}

func syncAndSum(path string) (uint32, error) {
	if err := syncFile(path); err != nil {
		return 0, err
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return disk.Sum(f)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(host.Fault("sync "+filepath.Base(path)), f.Sync())
}

// Allocated is what the template's files take of the disk now.
func (t Template) Allocated() (sum int64, err error) {
	entries, err := os.ReadDir(t.Dir)
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(t.Dir, e.Name()), &st); err == nil {
			sum += st.Blocks * 512
		}
	}
	return sum, err
}
