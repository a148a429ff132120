package disktest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/disk/loop"
)

// Mount makes a filesystem of that many bytes with a program and its arguments (the file
// is added), mounts it for the test and returns its root.
func Mount(t *testing.T, kind string, bytes int64, mkfs ...string) string {
	t.Helper()
	needRoot(t)
	image := filepath.Join(t.TempDir(), kind)
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, bytes); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skipf("SKIP: %s is not installed", mkfs[0])
	}
	if out, err := exec.CommandContext(t.Context(), mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", mkfs, err, out)
	}
	var loops loop.Loops
	dev, err := loops.OpenNew(t.Context(), image, false)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close() // the mount holds it
	return mount(t, dev.Path(), kind, "")
}

// MountTmpfs mounts an empty tmpfs of that many bytes for the test.
func MountTmpfs(t *testing.T, bytes string) string {
	t.Helper()
	needRoot(t)
	return mount(t, "tmpfs", "tmpfs", "size="+bytes)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: mounting a filesystem to test on needs root")
	}
}

func mount(t *testing.T, source, kind, options string) string {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount(source, dir, kind, 0, options)
	if errors.Is(err, unix.ENODEV) {
		t.Skipf("SKIP: this kernel has no %s", kind)
	}
	if err != nil {
		t.Fatalf("mount %s: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			t.Errorf("unmount %s: %v", kind, err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

// letGoLimit bounds how long what a loop device showed stays open once nobody uses it.
const letGoLimit = 10 * time.Second

// unmount waits until nothing on the filesystem is open. A loop device shows no file any more
// a moment before the kernel closes that, in whose name udev may have had it open last.
func unmount(dir string) (err error) {
	for deadline := time.Now().Add(letGoLimit); ; {
		if err = unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(time.Millisecond) // nobody is told
	}
}

// fill leaves no room on the filesystem of dir but for what is freed by removing the
// directory that it returns.
func fill(t *testing.T, dir string) string {
	t.Helper()
	fillers := filepath.Join(dir, "fillers")
	if err := os.Mkdir(fillers, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(fillers, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	// Most in one step, the rest by writing until nothing is left.
	most := int64(st.Bavail) * st.Bsize * 9 / 10
	if unix.Fallocate(int(f.Fd()), 0, 0, most) == nil {
		if _, err := f.Seek(most, io.SeekStart); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []int{1 << 20, 4096} {
		for err = nil; err == nil; {
			if _, err = f.Write(bytes.Repeat([]byte("filler.."), step/8)); err == nil {
				err = f.Sync()
			}
		}
	}
	// What is too little for a file's next block may still do for a file.
	for i := 0; errors.Is(err, unix.ENOSPC) && i < 1000; i++ {
		if writeSynced(filepath.Join(fillers, fmt.Sprint(i))) != nil {
			return fillers
		}
	}
	t.Fatalf("%s does not get full: %v", dir, err)
	return ""
}

func writeSynced(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte("filler"))
	return errors.Join(err, f.Sync(), f.Close())
}
