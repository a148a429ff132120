package vmdir

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/hypervisor"
	"banger/internal/vm"
)

const id = "0123456789ab"

// sound is a VM as it is kept in its directory below root.
func sound(root string) vm.VM {
	dir := filepath.Join(root, id)
	return vm.VM{ID: id, Name: "web", State: vm.Running, Disk: disk.Volume{Path: filepath.Join(dir, "root.qcow2")},
		Machine: &hypervisor.Record{VMID: id, Dir: dir}}
}

func TestACopyComesBackAsItWas(t *testing.T) {
	d := Dirs{Root: filepath.Join(t.TempDir(), "vms")}
	if names, err := d.List(); err != nil || len(names) != 0 {
		t.Errorf("before there is anything: %v, %v", names, err)
	}
	v := sound(d.Root)
	if err := d.Save(v); err != nil {
		t.Errorf("a copy where there is no directory: %v", err)
	}
	for range 2 { // making what is there is no error, nor is replacing the copy
		if err := d.Make(id); err != nil {
			t.Fatal(err)
		}
		if err := d.Save(v); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{d.Path(id), filepath.Join(d.Path(id), CopyName)} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is for others too: %v, %v", path, info.Mode(), err)
		}
	}
	saved, unreadable, err := d.Saved()
	if err != nil || len(unreadable) > 0 || !reflect.DeepEqual(saved, []vm.VM{v}) {
		t.Errorf("saved are %+v, unreadable %v, %v", saved, unreadable, err)
	}
	for range 2 { // removing what is gone is no error
		if err := d.Remove(id); err != nil {
			t.Error(err)
		}
	}
	if names, err := d.List(); err != nil || len(names) != 0 {
		t.Errorf("left are %v, %v", names, err)
	}
}

// A copy that a crash cut short leaves the last one.
func TestAnUnfinishedCopyDoesNotCount(t *testing.T) {
	d := Dirs{Root: t.TempDir()}
	v := sound(d.Root)
	if err := d.Make(id); err != nil {
		t.Fatal(err)
	}
	if err := d.Save(v); err != nil {
		t.Fatal(err)
	}
	unfinished := filepath.Join(d.Path(id), CopyName+newSuffix)
	if err := os.WriteFile(unfinished, []byte(`{"id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if saved, _, err := d.Saved(); err != nil || !reflect.DeepEqual(saved, []vm.VM{v}) {
		t.Errorf("saved are %+v, %v", saved, err)
	}
	if err := d.Save(v); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(unfinished); !os.IsNotExist(err) {
		t.Errorf("what was unfinished is still there: %v", err)
	}
}

func TestWhatIsNoCopyIsTold(t *testing.T) {
	d := Dirs{Root: t.TempDir()}
	edit := func(change func(*vm.VM)) string {
		v := sound(d.Root)
		change(&v)
		doc, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(doc)
	}
	plant := func(text string) func(path string) error {
		return func(path string) error { return os.WriteFile(path, []byte(text), 0o600) }
	}
	good := edit(func(*vm.VM) {})
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.WriteFile(elsewhere, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(path string) error{
		"nothing":           func(string) error { return nil },
		"empty":             plant(""),
		"no JSON":           plant("garbage"),
		"cut short":         plant(good[:len(good)/2]),
		"null":              plant("null"),
		"a list":            plant("[]"),
		"wrong types":       plant(`{"id":1,"state":[]}`),
		"two documents":     plant(good + good),
		"another's id":      plant(edit(func(v *vm.VM) { v.ID = "ba9876543210" })),
		"no state":          plant(edit(func(v *vm.VM) { v.State = "" })),
		"an unknown state":  plant(edit(func(v *vm.VM) { v.State = "flying" })),
		"a name with /":     plant(edit(func(v *vm.VM) { v.Name = "../x" })),
		"a name to steer":   plant(edit(func(v *vm.VM) { v.Name = "a\x1b[31m" })),
		"a name like an id": plant(edit(func(v *vm.VM) { v.Name = "ba9876543210" })),
		"another's disk":    plant(edit(func(v *vm.VM) { v.Disk.Path = "/etc/shadow" })),
		"a disk above":      plant(edit(func(v *vm.VM) { v.Disk.Path = d.Root + "/" + id + "/../x" })),
		"another's machine": plant(edit(func(v *vm.VM) { v.Machine.VMID = "ba9876543210" })),
		"a machine away":    plant(edit(func(v *vm.VM) { v.Machine.Dir = "/" })),
		"huge":              plant(good + strings.Repeat(" ", maxCopy)),
		"a link":            func(path string) error { return os.Symlink(elsewhere, path) },
		"a loop":            func(path string) error { return os.Symlink(path, path) },
		"a directory":       func(path string) error { return os.Mkdir(path, 0o700) },
		"a pipe":            func(path string) error { return unix.Mkfifo(path, 0o600) },
	} {
		if err := d.Make(id); err != nil {
			t.Fatal(err)
		}
		if err := make(filepath.Join(d.Path(id), CopyName)); err != nil {
			t.Fatal(err)
		}
		saved, unreadable, err := d.Saved()
		if err != nil || len(saved) > 0 || !slices.Equal(unreadable, []string{id}) {
			t.Errorf("%s: taken for %+v, unreadable are %v, %v", name, saved, unreadable, err)
		}
		if err := d.Remove(id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestADirectoryElsewhereIsNone(t *testing.T) {
	d := Dirs{Root: t.TempDir()}
	other := Dirs{Root: t.TempDir()}
	if err := other.Make(id); err != nil {
		t.Fatal(err)
	}
	if err := other.Save(sound(d.Root)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other.Path(id), d.Path(id)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"not-an-id": "", "0123456789AB": "", "0123456789abc": "", ".hidden": ""} {
		if err := os.WriteFile(filepath.Join(d.Root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	saved, unreadable, err := d.Saved()
	if err != nil || len(saved) > 0 || len(unreadable) != 5 {
		t.Errorf("saved are %+v, unreadable %v, %v", saved, unreadable, err)
	}
	if err := d.Remove(id); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(other.Path(id), CopyName)); err != nil {
		t.Errorf("what a link led to is gone: %v", err)
	}
}

// Whatever a copy says, it is refused or sound: it can be stored, and points nowhere else.
func FuzzCopies(f *testing.F) {
	const root = "/state/vms"
	good, err := json.Marshal(sound(root))
	if err != nil {
		f.Fatal(err)
	}
	for _, doc := range []string{string(good), "", "null", "{}", `{"id":"0123456789ab","name":"x","state":"stopped"}`, `{"machine":{}}`, "\xff"} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		dir := filepath.Join(root, id)
		v, err := check(doc, dir)
		if err != nil {
			if !reflect.DeepEqual(v, vm.VM{}) {
				t.Errorf("refused (%v), and yet %+v", err, v)
			}
			return
		}
		if v.ID != id || !v.State.Valid() || vm.CheckName(v.Name) != nil ||
			v.Disk.Path != "" && filepath.Dir(v.Disk.Path) != dir || v.Machine != nil && v.Machine.Dir != dir {
			t.Errorf("taken for %+v", v)
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := check(again, dir); err != nil || !reflect.DeepEqual(same, v) {
			t.Errorf("came back as %+v, %v; was %+v", same, err, v)
		}
	})
}
