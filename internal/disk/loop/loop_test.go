package loop

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

func needLoops(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: loop devices need root")
	}
	if _, err := os.Stat(controlPath); err != nil {
		t.Skip("SKIP: this kernel has no loop devices")
	}
}

// newFile makes a file of n bytes of text.
func newFile(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, bytes.Repeat([]byte("loop"), n/4), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// devicesOf lists the devices that show the file.
func devicesOf(t *testing.T, path string) (found []string) {
	t.Helper()
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(b), path) {
			found = append(found, strings.Split(name, "/")[3])
		}
	}
	return found
}

// wantGone waits until no device shows the file: the kernel clears one just after its last
// user has closed it.
func wantGone(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; {
		found := devicesOf(t, path)
		if len(found) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v still show %s", found, path)
		}
	}
}

func TestDeviceShowsItsFileAndGoesWithItsUser(t *testing.T) {
	needLoops(t)
	path := newFile(t, 64<<10)
	var l Loops
	d, err := l.OpenNew(t.Context(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if direct, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0); (err == nil) != d.DirectIO {
		t.Errorf("direct I/O is %v, and opening the file for it gives %v", d.DirectIO, err)
	} else if err == nil {
		direct.Close()
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if len(devicesOf(t, path)) != 1 {
		t.Error("the device has gone while it was open")
	}
	if _, err := dev.WriteAt(bytes.Repeat([]byte("x"), 4096), 8192); err != nil {
		t.Fatal(err)
	}
	if err := dev.Sync(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 64<<10 || !bytes.Equal(got[8192:8192+4096], bytes.Repeat([]byte("x"), 4096)) || !bytes.HasPrefix(got, []byte("looploop")) {
		t.Error("the file does not hold what was written to the device")
	}
	dev.Close()
	wantGone(t, path)
}

func TestSharedDeviceIsOneAndReadOnly(t *testing.T) {
	needLoops(t)
	path := newFile(t, 64<<10)
	var (
		l       Loops
		wg      sync.WaitGroup
		devices [20]*Device
		failed  [20]error
	)
	for i := range devices {
		wg.Go(func() { devices[i], failed[i] = l.OpenShared(t.Context(), path, Direct) })
	}
	wg.Wait()
	if err := errors.Join(failed[:]...); err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		if d.Minor != devices[0].Minor {
			t.Errorf("%s and %s both show one file", d.Path(), devices[0].Path())
		}
	}
	if f, err := os.OpenFile(devices[0].Path(), os.O_RDWR, 0); err == nil {
		if _, err := f.Write(make([]byte, 512)); err == nil && f.Sync() == nil {
			t.Error("a shared device can be written to")
		}
		f.Close()
	}
	// A device for writing is another one, and is never shared.
	own, err := l.OpenNew(t.Context(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	if own.Minor == devices[0].Minor {
		t.Error("a device for writing is shared")
	}
	for _, d := range devices[1:] {
		d.Close()
	}
	if got := devicesOf(t, path); len(got) != 2 {
		t.Errorf("%v are left, not two", got)
	}
	devices[0].Close()
	again, err := l.OpenShared(t.Context(), path, Direct)
	if err != nil {
		t.Fatal(err)
	}
	if again.Minor == own.Minor {
		t.Error("a device for writing was taken for a shared one")
	}
	again.Close()
	own.Close()
	wantGone(t, path)
}

// Someone detaches a device that is in use: it stays until its user is done.
func TestDetachedBySomeoneElse(t *testing.T) {
	needLoops(t)
	path := newFile(t, 64<<10)
	var l Loops
	d, err := l.OpenShared(t.Context(), path, Direct)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(int(other.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		t.Fatal(err)
	}
	other.Close()
	got := make([]byte, 8)
	if _, err := io.ReadFull(d.f, got); err != nil || string(got) != "looploop" {
		t.Errorf("read %q, %v", got, err)
	}
	d.Close()
	wantGone(t, path)
}

func TestManyAtOnce(t *testing.T) {
	needLoops(t)
	const n = 40
	dir := t.TempDir()
	var (
		l       Loops
		wg      sync.WaitGroup
		devices [n]*Device
		failed  [n]error
	)
	for i := range n {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { devices[i], failed[i] = l.OpenNew(t.Context(), path, false) })
	}
	wg.Wait()
	minors := map[uint32]bool{}
	for i, d := range devices {
		if failed[i] != nil {
			t.Error(failed[i])
			continue
		}
		minors[d.Minor] = true
		d.Close()
	}
	if len(minors) != n {
		t.Errorf("%d files have %d devices", n, len(minors))
	}
	wantGone(t, dir)
}

func TestNoRegularFile(t *testing.T) {
	needLoops(t)
	var l Loops
	for _, path := range []string{t.TempDir(), "/dev/null"} {
		if _, err := l.OpenNew(t.Context(), path, true); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := l.OpenShared(t.Context(), filepath.Join(t.TempDir(), "none"), Direct); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}
