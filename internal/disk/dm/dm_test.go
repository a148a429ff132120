package dm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/disk/dm/devmapper"
	"banger/internal/disk/dm/devmapper/devmappertest"
	"banger/internal/errs"
)

// bench is a driver on a device-mapper in memory and real loop devices.
type bench struct {
	*Driver
	kernel *devmappertest.Kernel
	dir    string
	base   disk.Base
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: loop devices need root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("SKIP: this kernel has no loop devices")
	}
	k := &devmappertest.Kernel{}
	b := &bench{Driver: New(devmapper.New(k.Ioctl)), kernel: k, dir: t.TempDir()}
	b.base = disk.Base{Path: filepath.Join(b.dir, "base.img"), Bytes: 1 << 20}
	if err := os.WriteFile(b.base.Path, make([]byte, b.base.Bytes), 0o400); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Reboot()
		for deadline := time.Now().Add(5 * time.Second); len(b.loops()) > 0; {
			if time.Now().After(deadline) {
				t.Errorf("loop devices are left: %v", b.loops())
				return
			}
		}
	})
	return b
}

// loops lists the files below b.dir that loop devices show.
func (b *bench) loops() (files []string) {
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range names {
		if file, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(file), b.dir+"/") {
			files = append(files, strings.TrimPrefix(strings.TrimSpace(string(file)), b.dir+"/"))
		}
	}
	slices.Sort(files)
	return files
}

// home makes the directory of a VM.
func (b *bench) home(t *testing.T, id string) disk.Home {
	t.Helper()
	h := disk.Home{ID: id, Dir: filepath.Join(b.dir, id)}
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return h
}

func (b *bench) volume(t *testing.T, id string, base disk.Base, bytes int64) (disk.Home, disk.Volume) {
	t.Helper()
	h := b.home(t, id)
	v, err := b.Clone(t.Context(), base, disk.Spec{Home: h, Bytes: bytes})
	if err != nil {
		t.Fatal(err)
	}
	return h, v
}

// attach attaches but for the node, which the fake's devices can't have.
func (b *bench) attach(t *testing.T, h disk.Home, v disk.Volume) error {
	t.Helper()
	a, err := b.Attach(t.Context(), h, v)
	if err == nil {
		if a.Format != "raw" || !strings.HasPrefix(a.Path, "/dev/dm-") {
			t.Errorf("attached as %+v", a)
		}
		t.Cleanup(func() { os.Remove(a.Path) })
	}
	return err
}

func (b *bench) want(t *testing.T, devices string, loops ...string) {
	t.Helper()
	if got := b.kernel.String(); got != devices {
		t.Errorf("devices:\n%swant:\n%s", got, devices)
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		got := b.loops()
		if slices.Equal(got, loops) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("loop devices of %v, want %v", got, loops)
			return
		}
	}
}

func TestAttachAndDetach(t *testing.T) {
	b := newBench(t)
	h, v := b.volume(t, "aa", b.base, 0)
	h2, v2 := b.volume(t, "aa1", b.base, 0)
	for range 2 { // what is there is made afresh
		if err := b.attach(t, h, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.attach(t, h2, v2); err != nil {
		t.Fatal(err)
	}
	second := "banger-aa1 rw\n  0 2048 snapshot base.img root.cow PO 8 1 discard_zeroes_cow\n"
	b.want(t, "banger-aa rw\n  0 2048 snapshot base.img root.cow PO 8 1 discard_zeroes_cow\n"+second,
		"aa/root.cow", "aa1/root.cow", "base.img") // one loop device of the base
	for range 2 {
		if err := b.Remove(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	b.want(t, second, "aa1/root.cow", "base.img")
	if _, err := os.Stat(v.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of changes is left: %v", err)
	}
	b.kernel.Reboot()
	b.want(t, "")
	if err := b.attach(t, h2, v2); err != nil {
		t.Fatal(err)
	}
	b.want(t, second, "aa1/root.cow", "base.img")
	if err := b.Detach(t.Context(), h2); err != nil {
		t.Fatal(err)
	}
	b.want(t, "")
}

func TestLargerAndOnAFrozenVolume(t *testing.T) {
	b := newBench(t)
	_, frozen := b.volume(t, "feed", b.base, 2<<20)
	h, v := b.volume(t, "aa", frozen.Freeze(), 4<<20)
	if err := b.attach(t, h, v); err != nil {
		t.Fatal(err)
	}
	b.want(t, `banger-aa-1 ro
  0 2048 linear base.img 0
  2048 2048 linear root.zeros 0
banger-aa-2 ro
  0 4096 snapshot banger-aa-1 root.cow PO 8
banger-aa-3 ro
  0 4096 linear banger-aa-2 0
  4096 4096 linear root.zeros 0
banger-aa rw
  0 8192 snapshot banger-aa-3 root.cow PO 8 1 discard_zeroes_cow
`, "aa/root.cow", "aa/root.zeros", "base.img", "feed/root.cow")
	if err := b.Detach(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	b.want(t, "")
}

func TestAFailedAttachLeavesNothing(t *testing.T) {
	for _, step := range []string{"create", "load", "resume"} {
		b := newBench(t)
		_, frozen := b.volume(t, "feed", b.base, 2<<20)
		h, v := b.volume(t, "aa", frozen.Freeze(), 4<<20)
		b.kernel.Fail(step, unix.ENOMEM)
		if err := b.attach(t, h, v); !errors.Is(err, unix.ENOMEM) {
			t.Errorf("%s: %v", step, err)
		}
		b.want(t, "")
		b.kernel.Fail("", nil)
		if err := b.attach(t, h, v); err != nil {
			t.Errorf("after %s: %v", step, err)
		}
	}
}

func TestABusyVolumeStays(t *testing.T) {
	b := newBench(t)
	h, v := b.volume(t, "aa", b.base, 0)
	if err := b.attach(t, h, v); err != nil {
		t.Fatal(err)
	}
	b.kernel.Open("banger-aa", 1)
	before := b.kernel.String()
	synctest.Test(t, func(t *testing.T) { // each waits for the device to be let go
		for name, verb := range map[string]func() error{
			"attach": func() error { return b.attach(t, h, v) },
			"detach": func() error { return b.Detach(t.Context(), h) },
			"remove": func() error { return b.Remove(t.Context(), h) },
		} {
			if err := verb(); errs.KindOf(err) != errs.Busy || errs.HintOf(err) == "" {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	if b.kernel.String() != before {
		t.Errorf("devices:\n%s", b.kernel.String())
	}
	if _, err := os.Stat(v.Path); err != nil {
		t.Errorf("the file of changes of an open disk: %v", err)
	}
	b.kernel.Open("banger-aa", -1)
	if err := b.Remove(t.Context(), h); err != nil {
		t.Error(err)
	}
}

func TestDamagedFilesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(path string) error
		want string
	}{
		"cut short":          {func(p string) error { return os.Truncate(p, 4096) }, "has 4096 bytes"},
		"emptied":            {func(p string) error { return errors.Join(os.Truncate(p, 0), os.Truncate(p, cowBytes(1<<20))) }, "does not begin"},
		"other chunks":       {poke(12, 16), "chunks of 16 sectors"},
		"a later version":    {poke(8, 2), "version 2"},
		"a directory":        {func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }, "no regular file"},
		"gone":               {os.Remove, "not there"},
		"replaced by a link": {func(p string) error { return errors.Join(os.Remove(p), os.Symlink("/dev/zero", p)) }, "no regular file"},
	} {
		b := newBench(t)
		h, v := b.volume(t, "aa", b.base, 0)
		if err := c.harm(v.Path); err != nil {
			t.Fatal(err)
		}
		if err := b.attach(t, h, v); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		b.want(t, "")
	}
}

// The kernel gives up a file that it could not write to; it is good again once attached.
func TestAFileThatWasGivenUp(t *testing.T) {
	b := newBench(t)
	h, v := b.volume(t, "aa", b.base, 0)
	if err := poke(validAt, 0)(v.Path); err != nil {
		t.Fatal(err)
	}
	if err := b.attach(t, h, v); err != nil {
		t.Fatal(err)
	}
	header := make([]byte, 16)
	f, err := os.Open(v.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(header, 0); err != nil || string(header) != "SnAp\x01\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00" {
		t.Errorf("its header: %q, %v", header, err)
	}
}

func poke(at int64, b byte) func(string) error {
	return func(path string) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte{b}, at)
		return errors.Join(err, f.Close())
	}
}

func TestTheBaseIsLookedAt(t *testing.T) {
	b := newBench(t)
	h, v := b.volume(t, "aa", b.base, 0)
	if err := os.Truncate(b.base.Path, 2<<20); err != nil {
		t.Fatal(err)
	}
	if err := b.attach(t, h, v); errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "2097152 bytes") {
		t.Errorf("a base that has grown: %v", err)
	}
	if err := os.Remove(b.base.Path); err != nil {
		t.Fatal(err)
	}
	if err := b.attach(t, h, v); errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("a base that is gone: %v", err)
	}
	b.want(t, "")
}

func TestOthersDevicesAreLeftAlone(t *testing.T) {
	all := []string{"banger-aa", "banger-aa-2", "banger-aa-10", "banger-aab", "banger-aa-x", "vg-root", "banger-aa-", "xbanger-aa"}
	if got, want := devicesOf("aa", all), []string{"banger-aa", "banger-aa-10", "banger-aa-2"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	d := New(devmapper.New((&devmappertest.Kernel{}).Ioctl))
	for _, id := range []string{"", "a-1", "../x", strings.Repeat("a", 65)} {
		if err := d.Detach(t.Context(), disk.Home{ID: id}); errs.KindOf(err) != errs.Invalid {
			t.Errorf("id %q: %v", id, err)
		}
	}
}

// Without device-mapper there is nothing to detach, and files can still be removed.
func TestRemoveOnAHostWithoutDeviceMapper(t *testing.T) {
	d := New(devmapper.New(func(uint, []byte) error { return &os.PathError{Op: "open", Path: "control", Err: unix.ENOENT} }))
	h := disk.Home{ID: "aa", Dir: t.TempDir()}
	path := filepath.Join(h.Dir, fileName)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left", path)
	}
	if os.Geteuid() != 0 {
		return
	}
	if err := d.Probe(t.Context(), disk.Base{}, h.Dir); errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "" {
		t.Errorf("probe: %v", err)
	}
}

func TestAnInvalidSnapshotIsSeen(t *testing.T) {
	for params, want := range map[string]errs.Kind{"Invalid": errs.Unavailable, "Overflow": errs.Unavailable, "16/2048 8": ""} {
		k := &devmappertest.Kernel{}
		mapper := devmapper.New(k.Ioctl)
		d := New(mapper)
		if _, err := mapper.Create(t.Context(), "banger-aa", "", false, []devmapper.Target{{Sectors: 8, Type: "snapshot"}}); err != nil {
			t.Fatal(err)
		}
		k.SetStatus("banger-aa", params)
		err := d.Check(disk.Home{ID: "aa"})
		if want == "" && err != nil || want != "" && errs.KindOf(err) != want {
			t.Errorf("%s: %v", params, err)
		}
		if err := d.Check(disk.Home{ID: "bb"}); err != nil {
			t.Errorf("not attached: %v", err)
		}
	}
}

func TestCowBytesHasRoomForEveryChunk(t *testing.T) {
	for _, size := range []int64{512, 4096, areaEntries * chunkBytes, areaEntries*chunkBytes + 512, 1 << 30, 20 << 30} {
		chunks := (size + chunkBytes - 1) / chunkBytes
		full := (chunks + areaEntries - 1) / areaEntries
		need := chunkBytes * (1 + chunks + full + 1) // the header, data, areas, and the area that comes next
		if got := cowBytes(size); got < need || got%chunkBytes != 0 {
			t.Errorf("%d bytes of file for a disk of %d, which needs %d", got, size, need)
		}
	}
}

func TestEntries(t *testing.T) {
	for _, count := range []int{0, 1, areaEntries - 1, areaEntries, areaEntries + 7} {
		path := filepath.Join(t.TempDir(), "cow")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := writeCow(f, 4<<20); err != nil {
			t.Fatal(err)
		}
		for i := range count {
			at := int64(chunkBytes) + int64(i/areaEntries)*areaBytes + int64(i%areaEntries)*entryBytes
			if _, err := f.WriteAt([]byte{byte(i), byte(i >> 8), 0, 0, 0, 0, 0, 0, 2}, at); err != nil {
				t.Fatal(err)
			}
		}
		var last, n int64
		err = entries(f, cowBytes(4<<20), func(offset, _ int64) error {
			last, n = offset, n+chunkBytes
			return nil
		})
		if err != nil || n != int64(count)*chunkBytes || count > 0 && last != int64(count-1)*chunkBytes {
			t.Errorf("%d entries are %d bytes, the last at %d, %v", count, n, last, err)
		}
	}
}

// What the guest has discarded has an entry and no data.
func TestExtentsAreWithoutHoles(t *testing.T) {
	v := disk.Volume{Driver: name, Path: filepath.Join(t.TempDir(), "root.cow"), VirtualBytes: 4 << 20}
	f, err := os.Create(v.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := writeCow(f, v.VirtualBytes); err != nil {
		t.Fatal(err)
	}
	for i := range byte(6) { // chunk 10+i is kept at place 2+i, of which every other has data
		if _, err := f.WriteAt([]byte{10 + i, 0, 0, 0, 0, 0, 0, 0, 2 + i}, chunkBytes+int64(i)*entryBytes); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if _, err := f.WriteAt(bytes.Repeat([]byte{1}, chunkBytes), int64(2+i)*chunkBytes); err != nil {
				t.Fatal(err)
			}
		}
	}
	var held []int64
	if err := New(nil).Extents(v, func(offset, _ int64) { held = append(held, offset/chunkBytes) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(held, []int64{10, 12, 14}) {
		t.Errorf("chunks %v are held", held)
	}
}
