package disk_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/disk"
	"banger/internal/disk/copy"
	"banger/internal/disk/qcow2"
	"banger/internal/disk/reflink"
	"banger/internal/errs"
)

// unfit is a driver that never works here.
type unfit struct{ disk.Driver }

func (unfit) Name() string { return "dm" }
func (unfit) Probe(context.Context, disk.Base, string) error {
	return errors.New("this kernel has no device-mapper")
}
func (unfit) Detach(context.Context, disk.Home) error { return nil }
func (unfit) Remove(context.Context, disk.Home) error { return nil }

func newSet(order ...string) disk.Set {
	return disk.Set{Drivers: []disk.Driver{unfit{}, reflink.New(), qcow2.Driver{}, copy.New()}, Order: order}
}

func newImage(t *testing.T) (disk.Base, string) {
	t.Helper()
	dir := t.TempDir()
	base := disk.Base{Path: filepath.Join(dir, "base"), Bytes: 1 << 20}
	if err := os.WriteFile(base.Path, make([]byte, base.Bytes), 0o400); err != nil {
		t.Fatal(err)
	}
	return base, dir
}

func TestChoose(t *testing.T) {
	base, dir := newImage(t)
	frozen := disk.Base{Path: base.Path, Bytes: base.Bytes, Driver: "qcow2", On: &base}
	for _, c := range []struct {
		name, want string
		base       disk.Base
		order      []string
		driver     string
		last       bool
		why        string
		kind       errs.Kind
	}{
		{name: "the first that works", want: "auto", base: base, order: []string{"dm", "qcow2", "copy"}, driver: "qcow2", why: "dm: this kernel has no device-mapper"},
		{name: "the first", want: "auto", base: base, order: []string{"qcow2", "copy"}, driver: "qcow2", why: "the best for this VMM"},
		{name: "the last resort", want: "auto", base: base, order: []string{"dm", "copy"}, driver: "copy", last: true, why: "no device-mapper"},
		{name: "none", want: "auto", base: base, order: []string{"dm"}, kind: errs.Unavailable, why: "no device-mapper"},
		{name: "the one asked for", want: "copy", base: base, order: []string{"qcow2", "copy"}, driver: "copy", last: true, why: "asked for"},
		{name: "one that does not work", want: "dm", base: base, order: []string{"qcow2", "copy"}, kind: errs.Unavailable, why: "no device-mapper"},
		{name: "one that is not there", want: "zfs", base: base, order: []string{"qcow2"}, kind: errs.Invalid, why: `"zfs"`},
		{name: "what reads a frozen overlay", want: "auto", base: frozen, order: []string{"reflink", "qcow2", "copy"}, driver: "qcow2", why: "reflink: only the driver qcow2 can read"},
		{name: "what can't read a frozen overlay", want: "copy", base: frozen, order: []string{"qcow2"}, kind: errs.Unavailable, why: "only the driver qcow2"},
	} {
		got, err := newSet(c.order...).Choose(t.Context(), c.want, c.base, dir)
		if c.kind != "" {
			if errs.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%s: %+v, %v", c.name, got, err)
			}
			continue
		}
		if err != nil || got.Driver != c.driver || got.LastResort != c.last || !strings.Contains(got.Why, c.why) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

// Whatever driver has made a disk, removing it takes no memory of which.
func TestRemoveIsOfAllDrivers(t *testing.T) {
	base, dir := newImage(t)
	s := newSet("qcow2")
	for _, driver := range []string{"qcow2", "copy"} {
		home := disk.Home{ID: "aa", Dir: filepath.Join(dir, driver)}
		if err := os.Mkdir(home.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		v, err := s.Clone(t.Context(), driver, base, disk.Spec{Home: home})
		if err != nil {
			t.Fatal(err)
		}
		if a, err := s.Attach(t.Context(), home, v); err != nil || a.Path != v.Path {
			t.Errorf("%+v, %v", a, err)
		}
		if u, err := s.Usage(v); err != nil || u.AllocatedBytes < 0 {
			t.Errorf("%+v, %v", u, err)
		}
		for range 2 {
			if err := s.Remove(t.Context(), home); err != nil {
				t.Error(err)
			}
		}
		if err := os.Remove(home.Dir); err != nil {
			t.Error(err)
		}
	}
}
