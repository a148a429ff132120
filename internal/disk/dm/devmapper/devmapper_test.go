package devmapper_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"banger/internal/disk/dm/devmapper"
	"banger/internal/disk/dm/devmapper/devmappertest"
)

// zeros is a table that needs nothing below it.
func zeros(sectors uint64) []devmapper.Target {
	return []devmapper.Target{{Sectors: sectors, Type: "zero"}}
}

func TestCreateLookAtAndRemove(t *testing.T) {
	var k devmappertest.Kernel
	c := devmapper.New(k.Ioctl)
	below, err := c.Create(t.Context(), "below", "U-1", true, zeros(64))
	if err != nil {
		t.Fatal(err)
	}
	on := fmt.Sprintf("%d:%d", below.Major, below.Minor)
	d, err := c.Create(t.Context(), "top", "U-2", false, []devmapper.Target{
		{Sectors: 64, Type: "linear", Params: on + " 0"}, {Start: 64, Sectors: 8, Type: "zero"}})
	if err != nil || d.ReadOnly || !d.Live || d.Minor == below.Minor {
		t.Errorf("%+v, %v", d, err)
	}
	want := "below ro\n  0 64 zero\ntop rw\n  0 64 linear below 0\n  64 8 zero\n"
	if k.String() != want {
		t.Errorf("devices:\n%swant:\n%s", k.String(), want)
	}
	if got, err := c.Get("below"); err != nil || !got.ReadOnly || got.OpenCount != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := c.Status("top"); err != nil || len(got) != 2 || got[1].Start != 64 || got[1].Type != "zero" {
		t.Errorf("status %+v, %v", got, err)
	}
	if _, err := c.Create(t.Context(), "top", "U-2", false, zeros(1)); !errors.Is(err, devmapper.ErrTaken) {
		t.Errorf("a name that is taken: %v", err)
	}
	synctest.Test(t, func(t *testing.T) { // it waits for the device to be let go
		if err := c.Remove(t.Context(), "below"); !errors.Is(err, devmapper.ErrInUse) {
			t.Errorf("a device in use: %v", err)
		}
	})
	for range 2 {
		for _, name := range []string{"top", "below"} {
			if err := c.Remove(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
	}
	if k.String() != "" {
		t.Errorf("left:\n%s", k.String())
	}
	if _, err := c.Get("top"); !errors.Is(err, devmapper.ErrNone) {
		t.Errorf("a device that is gone: %v", err)
	}
	if _, err := c.Status("top"); !errors.Is(err, devmapper.ErrNone) {
		t.Errorf("the status of a device that is gone: %v", err)
	}
}

func TestAFailedStepLeavesNothing(t *testing.T) {
	for _, step := range []string{"create", "load", "resume"} {
		var k devmappertest.Kernel
		k.Fail(step, unix.EINVAL)
		if _, err := devmapper.New(k.Ioctl).Create(t.Context(), "d", "U", false, zeros(8)); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v", step, err)
		} else if step == "load" && !errors.Is(err, devmapper.ErrTable) {
			t.Errorf("%s: %v is no ErrTable", step, err)
		}
		if k.String() != "" {
			t.Errorf("%s leaves:\n%s", step, k.String())
		}
	}
}

func TestListIsWhole(t *testing.T) {
	var k devmappertest.Kernel
	c := devmapper.New(k.Ioctl)
	if names, err := c.List(); err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
	const n = 700 // more than fit into the first buffer
	for i := range n {
		if _, err := c.Create(t.Context(), fmt.Sprintf("device-with-a-longer-name-%d", i), "", false, zeros(8)); err != nil {
			t.Fatal(err)
		}
	}
	names, err := c.List()
	if err != nil || len(names) != n || names[n-1] != fmt.Sprintf("device-with-a-longer-name-%d", n-1) {
		t.Errorf("%d names, %v", len(names), err)
	}
}

func TestNamesThatDoNotFit(t *testing.T) {
	var k devmappertest.Kernel
	if _, err := devmapper.New(k.Ioctl).Create(t.Context(), strings.Repeat("x", 128), "", false, zeros(8)); err == nil {
		t.Error("a name of 128 bytes was taken")
	}
}

func TestHostSaysWhatIsMissing(t *testing.T) {
	if _, err := os.Stat("/dev/mapper/control"); err == nil {
		t.Skip("SKIP: this host has device-mapper; its driver's suite tests that")
	}
	_, err := devmapper.New(devmapper.Host).List()
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
		t.Errorf("a host without device-mapper: %v", err)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte{}, uint32(312), uint32(400), uint32(1))
	f.Fuzz(func(t *testing.T, data []byte, start, size, targets uint32) {
		c := devmapper.New(func(request uint, buf []byte) error {
			le := func(at int, v uint32) {
				buf[at], buf[at+1], buf[at+2], buf[at+3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
			}
			le(12, size)
			le(16, start)
			le(20, targets%64)
			copy(buf[312:], data)
			return nil
		})
		// Whatever is answered, it ends, and with no panic.
		if names, err := c.List(); err == nil && len(names) > len(data)+1 {
			t.Errorf("%d names of %d bytes", len(names), len(data))
		}
		_, _ = c.Status("x")
	})
}
