package vm_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/op"
	"banger/internal/template"
	"banger/internal/vm"
)

// warmWorld is a world with templates, and one of them.
func warmWorld(t *testing.T) (*world, *vm.Manager, template.Template) {
	t.Helper()
	w := newWorld(t)
	w.budget = 1 << 30
	m, end := w.daemon()
	t.Cleanup(end)
	return w, m, makeTemplate(t, m, vm.Request{})
}

func makeTemplate(t *testing.T, m *vm.Manager, req vm.Request) (made template.Template) {
	t.Helper()
	if _, err := operation(t, func(ctx context.Context, o *op.Operation) (err error) {
		made, err = m.MakeTemplate(ctx, o, req)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return made
}

// machineOf is the machine of a VM that runs.
func (w *world) machineOf(m *vm.Manager, v vm.VM) *machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.machines[m.Directory(v)]
}

func TestAVMGoesOnFromTheTemplateForIt(t *testing.T) {
	w, m, made := warmWorld(t)
	if found := w.census(); len(found) > 0 {
		t.Errorf("a template has left %q", found)
	}
	if again := makeTemplate(t, m, vm.Request{}); again.Name != made.Name {
		t.Errorf("made again, it is %s and was %s", again.Name, made.Name)
	}
	v, err := create(t, m, vm.Request{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	machine := w.machineOf(m, v)
	if v.StartKind != vm.Warm || v.Template != made.Name || v.Pristine || v.Base.Path != made.Disk.Path || machine.from == nil ||
		*machine.from != *made.Saved() || machine.paused {
		t.Errorf("the VM is %+v and its machine %+v", v, machine)
	}
	if c := w.lastConf; c.Clone == nil || c.Clone.BootID == "" || c.Links[0].OldMAC != made.MAC || c.Links[0].MAC != v.MAC || v.MAC == made.MAC {
		t.Errorf("its guest was told %+v", c)
	}
	w.set(func() { w.wanted = nil })
	for what, req := range map[string]vm.Request{
		"--fresh": {Boot: vm.Cold}, "other memory": {MemoryBytes: new(int64(256 << 20))}, "other disk": {DiskBytes: new(int64(4 << 20))}, "no network": {Net: "none"},
	} {
		v, err := create(t, m, req)
		if err != nil || v.StartKind != vm.Cold || v.Template != "" || w.lastConf.Clone != nil {
			t.Errorf("%s: started %s from %q, %v", what, v.StartKind, v.Template, err)
		}
	}
	huge, err := create(t, m, vm.Request{HugePages: true})
	if err != nil || huge.StartKind != vm.Cold {
		t.Errorf("with huge pages: started %s, %v", huge.StartKind, err)
	}
	if len(w.wanted) != 3 { // not for --fresh, nor for what can't be kept
		t.Errorf("templates were wanted for %+v", w.wanted)
	}
	if _, err := create(t, m, vm.Request{Boot: vm.Warm, Net: "none"}); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("--warm without a template: %v", err)
	}
	w.set(func() { w.vmm = "another program" })
	if v, err := create(t, m, vm.Request{}); err != nil || v.StartKind != vm.Cold {
		t.Errorf("with another VMM: started %s, %v", v.StartKind, err)
	}
}

func TestAFreshVMStartsWarmOnce(t *testing.T) {
	_, m, _ := warmWorld(t)
	req := vm.Request{Name: "web"}
	if _, err := operation(t, func(ctx context.Context, o *op.Operation) error {
		_, err := m.Create(ctx, o, req)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	v := settled(t, m, "web", vm.Stopped)
	for i, want := range []vm.Boot{vm.Warm, vm.Cold} {
		if _, err := operation(t, func(ctx context.Context, o *op.Operation) error { return doStart(ctx, m, o, v.ID) }); err != nil {
			t.Fatal(err)
		}
		if v = settled(t, m, "web", vm.Running); v.StartKind != want {
			t.Errorf("start %d was %s", i+1, v.StartKind)
		}
		if _, err := operation(t, func(ctx context.Context, o *op.Operation) error { return doStop(0)(ctx, m, o, v.ID) }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := operation(t, func(ctx context.Context, o *op.Operation) error {
		_, err := m.Start(ctx, o, v.ID, "", vm.Warm)
		return err
	}); errs.KindOf(err) != errs.Conflict {
		t.Errorf("--warm with a disk that has been written to: %v", err)
	}
}

// Between a VM's creation and its first start the host may change.
func TestAVMDoesNotGoOnFromATemplateThatDoesNotFitAnyMore(t *testing.T) {
	for what, change := range map[string]func(*world, *vm.Manager, template.Template){
		"another VMM":       func(w *world, _ *vm.Manager, _ template.Template) { w.set(func() { w.vmm = "another program" }) },
		"switched off":      func(_ *world, m *vm.Manager, _ template.Template) { m.TemplateBytes = 0 },
		"removed by others": func(_ *world, _ *vm.Manager, made template.Template) { os.RemoveAll(made.Dir) },
	} {
		t.Run(what, func(t *testing.T) {
			w, m, made := warmWorld(t)
			t.Chdir(t.TempDir())
			if err := os.WriteFile("state", nil, 0o600); err != nil { // somebody's
				t.Fatal(err)
			}
			if _, err := operation(t, func(ctx context.Context, o *op.Operation) error {
				_, err := m.Create(ctx, o, vm.Request{Name: "web"})
				return err
			}); err != nil {
				t.Fatal(err)
			}
			change(w, m, made)
			v := settled(t, m, "web", vm.Stopped)
			start := func(boot vm.Boot) error {
				_, err := operation(t, func(ctx context.Context, o *op.Operation) error {
					_, err := m.Start(ctx, o, v.ID, "", boot)
					return err
				})
				return err
			}
			if err := start(vm.Warm); errs.KindOf(err) != errs.Unavailable {
				t.Errorf("--warm: %v", err)
			}
			if err := start(""); err != nil {
				t.Fatal(err)
			}
			if v = settled(t, m, "web", vm.Running); v.StartKind != vm.Cold || v.Template != "" || v.Disk.On.Path != w.base {
				t.Errorf("started %s, disk %+v", v.StartKind, v.Disk)
			}
			if again, err := m.Templates.Get(made.Name); err == nil && again.Retired() {
				t.Error("the template is retired, and nothing is wrong with it")
			}
			if _, err := os.Stat("state"); err != nil {
				t.Error(err)
			}
		})
	}
}

// Of a VM that is known by a copy of its row alone nobody can tell that its guest has never run.
func TestAVMThatIsKnownAgainBoots(t *testing.T) {
	w := newWorld(t)
	w.budget = 1 << 30
	m, end := w.daemon()
	makeTemplate(t, m, vm.Request{})
	if _, err := operation(t, func(ctx context.Context, o *op.Operation) error {
		_, err := m.Create(ctx, o, vm.Request{Name: "web"})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	end()
	w.losesStore()
	m, end = w.daemon()
	defer end()
	if v := settled(t, m, "web", vm.Stopped); v.Pristine || v.Template == "" {
		t.Errorf("the VM is %+v", v)
	}
}

func TestWhatIsWrongWithATemplateIsNobodysTrouble(t *testing.T) {
	for what, harm := range map[string]func(*world, template.Template){
		"its machine does not start":  func(w *world, _ template.Template) { w.set(func() { w.fail = "load" }) },
		"its memory is damaged":       func(_ *world, made template.Template) { harmFile(t, made.Saved().Memory) },
		"its state is damaged":        func(_ *world, made template.Template) { harmFile(t, made.Saved().State) },
		"its disk is damaged":         func(_ *world, made template.Template) { harmFile(t, made.Disk.Path) },
		"half of it has been removed": func(_ *world, made template.Template) { os.Remove(made.Saved().Memory) },
	} {
		t.Run(what, func(t *testing.T) {
			w, m, made := warmWorld(t)
			harm(w, made)
			v, err := create(t, m, vm.Request{Name: "web"})
			if err != nil || v.StartKind != vm.Cold || v.Template != "" || v.Base.Path != w.base || v.Disk.On.Path != w.base {
				t.Errorf("started %s, disk %+v, %v", v.StartKind, v.Disk, err)
			}
			var noted bool
			if err := m.Events(t.Context(), 0, false, func(e vm.Event) bool {
				noted = noted || e.Cause == "template" && strings.Contains(e.Reason, made.Name)
				return true
			}); err != nil || !noted {
				t.Errorf("no event tells of it, %v", err)
			}
			w.set(func() { w.fail = "" })
			if other := makeTemplate(t, m, vm.Request{}); other.Name == made.Name {
				t.Error("it is still in use")
			}
			if _, err := os.Stat(made.Dir); !os.IsNotExist(err) {
				t.Errorf("it was not evicted: %v", err)
			}
			for _, text := range w.audit(m, false) {
				t.Error(text)
			}
		})
	}
}

func harmFile(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("harm"), 10); err != nil {
		t.Fatal(err)
	}
}

func TestTemplatesInUseAreNotEvicted(t *testing.T) {
	w, m, used := warmWorld(t)
	v, err := create(t, m, vm.Request{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	other := makeTemplate(t, m, vm.Request{Net: "none"})
	if err := m.RemoveTemplate(t.Context(), used.Name); errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "web") {
		t.Errorf("removal of one in use: %v", err)
	}
	gone, err := m.PruneTemplates(t.Context(), 0, "")
	if err != nil || len(gone) != 1 || gone[0].Name != other.Name {
		t.Errorf("pruned: %+v, %v", gone, err)
	}
	if err := m.Delete(t.Context(), v.ID, true); err != nil {
		t.Fatal(err)
	}
	if err := m.RemoveTemplate(t.Context(), used.Name); err != nil {
		t.Error(err)
	}
	if err := m.RemoveTemplate(t.Context(), used.Name); errs.KindOf(err) != errs.NotFound {
		t.Errorf("removal of one that is gone: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(w.templates(), "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// A daemon whose budget is smaller than the last one's was gives up what is above it.
func TestTemplatesAreEvictedAtTheStart(t *testing.T) {
	w := newWorld(t)
	w.budget = 1 << 30
	m, end := w.daemon()
	old, used := makeTemplate(t, m, vm.Request{Net: "none"}), makeTemplate(t, m, vm.Request{})
	if _, err := create(t, m, vm.Request{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	end()
	w.budget = 1
	m, end = w.daemon()
	defer end()
	left, users, err := m.ListTemplates(t.Context())
	if err != nil || len(left) != 1 || left[0].Name != used.Name || len(users[used.Name]) != 1 {
		t.Errorf("left: %+v, %v; %s was to go, and %s to stay", left, err, old.Name, used.Name)
	}
}

// An image that is to be removed takes its templates with it.
func TestTemplatesGoWithTheirImage(t *testing.T) {
	w, m, _ := warmWorld(t)
	makeTemplate(t, m, vm.Request{DiskDriver: "copy"}) // whose disk lies on none
	if err := m.DropTemplates(t.Context(), func(_ disk.Base, kernel string) bool { return kernel == "other" }); err != nil {
		t.Fatal(err)
	}
	if all, _, err := m.ListTemplates(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("templates: %+v, %v", all, err)
	}
	if err := m.DropTemplates(t.Context(), func(base disk.Base, _ string) bool { return base.ReadsFrom(filepath.Dir(w.base)) }); err != nil {
		t.Fatal(err)
	}
	if all, _, err := m.ListTemplates(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("templates: %+v, %v", all, err)
	}
}

// What waits for another template to be made can be cancelled, and ends with its image.
func TestTemplatesThatWaitToBeMadeEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.budget = 1 << 30
		m, end := w.daemon()
		defer end()
		w.set(func() { w.silent = true })
		begin := time.Now()
		ops := op.NewRegistry(t.Context())
		var all []*op.Operation
		for _, cpus := range []int{1, 2, 1} {
			all = append(all, ops.Start("template", func(ctx context.Context, o *op.Operation) error {
				_, err := m.MakeTemplate(ctx, o, vm.Request{CPUs: &cpus})
				return err
			}))
			synctest.Wait()
		}
		all[1].Cancel()
		if err := all[1].Wait(t.Context()); err == nil {
			t.Error("it was cancelled, and has not failed")
		}
		if err := m.DropTemplates(t.Context(), func(base disk.Base, _ string) bool { return base.ReadsFrom(filepath.Dir(w.base)) }); err != nil {
			t.Error(err)
		}
		for _, o := range []*op.Operation{all[0], all[2]} {
			if err := o.Wait(t.Context()); err == nil {
				t.Error("the image is dropped, and its template was made")
			}
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it took %v", took)
		}
		if err := m.Unused(t.Context(), "image tiny", func(vm.VM) bool { return true }, func() error { return nil }); err != nil {
			t.Error(err)
		}
	})
}
