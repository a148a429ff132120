package vm_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"banger/internal/errs"
	"banger/internal/guest/proto"
	"banger/internal/op"
	"banger/internal/vm"
)

func TestLife(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	v, err := create(t, m, vm.Request{Name: "web", Env: []string{"A=b"}})
	if err != nil {
		t.Fatal(err)
	}
	if v.State != vm.Running || v.Machine == nil || v.StartTook <= 0 || v.Disk.VirtualBytes != 1<<20 {
		t.Errorf("created as %+v", v)
	}
	if c := w.lastConf; c.Hostname != "web" || len(c.MachineID) != 32 || c.Links[0].MAC != v.MAC || c.Env[0] != "A=b" || len(c.Entropy) == 0 {
		t.Errorf("configured with %+v", c)
	}
	if err := m.Delete(t.Context(), v.ID, false); errs.KindOf(err) != errs.Conflict || errs.HintOf(err) == "" {
		t.Errorf("rm of a running VM: %v", err)
	}
	stop := func(ctx context.Context, o *op.Operation) error {
		_, err := m.Stop(ctx, o, v.ID, time.Minute)
		return err
	}
	for range 2 { // stopping what is stopped is no error
		if _, err := operation(t, stop); err != nil {
			t.Fatal(err)
		}
	}
	was := v
	v = settled(t, m, "web", vm.Stopped)
	if v.Reason != "" || v.Machine != nil || v.StoppedAt.IsZero() {
		t.Errorf("stopped as %+v", v)
	}
	start := func(ctx context.Context, o *op.Operation) error {
		_, err := m.Start(ctx, o, v.ID, "", "")
		return err
	}
	if _, err := operation(t, start); err != nil {
		t.Fatal(err)
	}
	v = settled(t, m, "web", vm.Running)
	if v.MAC != was.MAC || v.HostKey != was.HostKey || v.MachineID != was.MachineID || v.Machine.Process == was.Machine.Process {
		t.Errorf("came back as %+v, was %+v", v, was)
	}
	if _, err := operation(t, start); errs.KindOf(err) != errs.Conflict {
		t.Errorf("starting what runs: %v", err)
	}
	if err := m.Delete(t.Context(), v.ID, true); err != nil {
		t.Fatal(err)
	}
	if found := w.census(); found != nil {
		t.Errorf("left behind: %v", found)
	}
}

// Every step of a creation fails once; nothing may be left, and the same must then work.
func TestCreationUndoesItself(t *testing.T) {
	for _, step := range []string{"disk", "initramfs", "launch"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			m, end := w.daemon()
			defer end()
			w.set(func() { w.fail = step })
			if _, err := create(t, m, vm.Request{Name: "web"}); err == nil || !strings.Contains(err.Error(), step+" fails") {
				t.Errorf("got %v", err)
			}
			if found := w.census(); found != nil {
				t.Errorf("left behind: %v", found)
			}
			w.set(func() { w.fail = "" })
			if _, err := create(t, m, vm.Request{Name: "web"}); err != nil {
				t.Errorf("the second try: %v", err)
			}
		})
	}
}

func TestAGuestThatNeverAnswers(t *testing.T) {
	for _, step := range []string{"channel", "configure"} {
		t.Run(step, func(t *testing.T) { inWorld(t, func(t *testing.T, w *world) { neverAnswers(t, w, step) }) })
	}
}

func neverAnswers(t *testing.T, w *world, step string) {
	m, end := w.daemon()
	defer end()
	w.set(func() { w.fail = step })
	v, err := create(t, m, vm.Request{Name: "web"})
	if err == nil || !strings.Contains(err.Error(), "Kernel panic [31m- not syncing") || !strings.Contains(errs.HintOf(err), "banger logs web") {
		t.Errorf("%s: the error does not show the console: %v", step, err)
	}
	v = settled(t, m, v.Name, vm.Failed)
	if found := w.census(); !reflect.DeepEqual(found, []string{"directory " + v.ID}) {
		t.Errorf("%s: on the host is %v", step, found)
	}
	if _, err := create(t, m, vm.Request{Name: "gone", AutoRemove: true}); err == nil {
		t.Error("no error")
	}
	if _, err := m.Find(t.Context(), "gone"); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a VM that was to be removed is there: %v", err)
	}
	w.set(func() { w.fail = "" })
	if _, err := operation(t, func(ctx context.Context, o *op.Operation) error {
		_, err := m.Start(ctx, o, v.ID, "", "")
		return err
	}); err != nil {
		t.Errorf("%s: starting it again: %v", step, err)
	}
}

func TestCancelledCreationLeavesNothing(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	w.set(func() { w.silent = true })
	o := op.NewRegistry(t.Context()).Start("create", func(ctx context.Context, o *op.Operation) error {
		_, err := m.Create(ctx, o, vm.Request{Name: "web", Start: true})
		return err
	})
	o.Follow(t.Context(), func(e op.Event) bool {
		if e.Stage == "waiting for the guest" {
			o.Cancel()
		}
		return true
	})
	if found := w.census(); found != nil {
		t.Errorf("left behind: %v", found)
	}
	if vms, err := m.List(t.Context()); err != nil || len(vms) > 0 {
		t.Errorf("the store still has %v, %v", vms, err)
	}
}

func TestMachinesThatEndByThemselves(t *testing.T) {
	for _, tc := range []struct {
		clean, autoRemove bool
		want              vm.State
	}{{true, false, vm.Stopped}, {false, false, vm.Failed}, {true, true, ""}} {
		w := newWorld(t)
		m, end := w.daemon()
		defer end()
		v, err := create(t, m, vm.Request{Name: "web", AutoRemove: tc.autoRemove})
		if err != nil {
			t.Fatal(err)
		}
		w.machines[v.Machine.Dir].end("it had enough", tc.clean)
		if tc.want != "" {
			if v := settled(t, m, "web", tc.want); v.Reason != "it had enough" || v.Machine != nil {
				t.Errorf("settled as %+v", v)
			}
			continue
		}
		for w.census() != nil { // removal comes by itself; the test's own limit bounds it
		}
	}
}

func TestStopKillsAGuestThatWillNot(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	v, err := create(t, m, vm.Request{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	w.ignores = true
	warnings, err := operation(t, func(ctx context.Context, o *op.Operation) error {
		_, err := m.Stop(ctx, o, v.ID, 20*time.Millisecond)
		return err
	})
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "was killed") {
		t.Errorf("got %v, %q", err, warnings)
	}
	settled(t, m, "web", vm.Stopped)
	if _, err := m.Guest(t.Context(), "web"); errs.KindOf(err) != errs.Conflict || errs.HintOf(err) != "banger start web" {
		t.Errorf("the guest of a stopped VM: %v", err)
	}
}

// No image is made of the disk of a VM that had to be killed before it had written out what it has;
// if it has done that at least, it is as good as one that has powered off.
func TestFlattenOfAVMThatIsKilled(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	flatten := func(v vm.VM) (string, error) {
		path := filepath.Join(t.TempDir(), "flat")
		_, err := operation(t, func(ctx context.Context, o *op.Operation) error {
			_, err := m.Flatten(ctx, o, v.ID, path, true)
			return err
		})
		return path, err
	}
	frozen, torn := made(t, m, vm.Request{Name: "frozen"}), made(t, m, vm.Request{Name: "torn"})
	w.set(func() { w.fail = proto.MethodShutdown })
	if path, err := flatten(frozen); err != nil {
		t.Errorf("one that froze: %v", err)
	} else if _, err := os.Stat(path); err != nil || w.froze != 1 {
		t.Errorf("one that froze %d times: %v", w.froze, err)
	}
	w.set(func() { w.fail = "" })

	if _, err := m.Pause(t.Context(), torn.ID); err != nil {
		t.Fatal(err)
	}
	w.set(func() { w.fail = "pause" }) // as it does whenever it is to go on
	path, err := flatten(torn)
	if errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "its disk is not whole") {
		t.Errorf("one that was killed as it was: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a copy of its disk: %v", err)
	}
	w.set(func() { w.fail = "" })
	settled(t, m, "torn", vm.Stopped)
}

func TestPauseAndResume(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	v, err := create(t, m, vm.Request{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // doing it again is no error
		if v, err = m.Pause(t.Context(), v.ID); err != nil || v.State != vm.Paused || !w.machines[v.Machine.Dir].paused {
			t.Fatalf("paused as %+v, %v", v, err)
		}
	}
	if _, err := m.Guest(t.Context(), "web"); errs.KindOf(err) != errs.Conflict || errs.HintOf(err) != "banger resume web" {
		t.Errorf("the guest of a paused VM: %v", err)
	}
	end()
	w.machines[v.Machine.Dir].paused = false // as if the daemon had died before it could
	m, end = w.daemon()
	defer end()
	if v := settled(t, m, "web", vm.Paused); !w.machines[v.Machine.Dir].paused {
		t.Error("the next daemon left it running")
	}
	for range 2 {
		if v, err = resume(t, m, v.ID); err != nil || v.State != vm.Running || w.machines[v.Machine.Dir].paused {
			t.Fatalf("resumed as %+v, %v", v, err)
		}
	}
	w.set(func() { w.fail = "pause" })
	if _, err := m.Pause(t.Context(), v.ID); err == nil {
		t.Error("a pause that failed")
	}
	w.set(func() { w.fail = "" })
	settled(t, m, "web", vm.Running)
	if _, err := m.Pause(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	warnings, err := operation(t, func(ctx context.Context, o *op.Operation) error {
		_, err := m.Restart(ctx, o, v.ID, time.Minute, "")
		return err
	})
	if err != nil || warnings != nil {
		t.Errorf("restart of a paused VM: %v, %q", err, warnings)
	}
	settled(t, m, "web", vm.Running)
}

func TestDegradedInitIsToldNotFailed(t *testing.T) {
	w := newWorld(t)
	w.boot = "degraded"
	m, end := w.daemon()
	defer end()
	warnings, err := operation(t, func(ctx context.Context, o *op.Operation) error {
		_, err := m.Create(ctx, o, vm.Request{Name: "web", Start: true})
		return err
	})
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "degraded") {
		t.Errorf("got %v, %q", err, warnings)
	}
}

func TestDaemonsComeAndGo(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	for _, name := range []string{"lives", "dies", "leased"} {
		req := vm.Request{Name: name}
		if name == "leased" {
			req.Lease = m.OpenLease()
		}
		if _, err := create(t, m, req); err != nil {
			t.Fatal(err)
		}
	}
	dies, err := m.Find(t.Context(), "dies")
	if err != nil {
		t.Fatal(err)
	}
	end()
	w.machines[dies.Machine.Dir].end("", false)

	m, end = w.daemon()
	defer end()
	settled(t, m, "lives", vm.Running)
	if _, err := m.Guest(t.Context(), "lives"); err != nil {
		t.Errorf("its guest: %v", err)
	}
	if v := settled(t, m, "dies", vm.Stopped); !strings.Contains(v.Reason, "while the daemon was away") {
		t.Errorf("reason is %q", v.Reason)
	}
	if _, err := m.Find(t.Context(), "leased"); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a VM whose client went: %v", err)
	}
	if found := w.census(); len(found) != 3 {
		t.Errorf("on the host is %v", found)
	}
}

func TestLeases(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	lease := m.OpenLease()
	if _, err := create(t, m, vm.Request{Name: "web", Lease: lease}); err != nil {
		t.Fatal(err)
	}
	if err := m.EndLease(t.Context(), lease); err != nil {
		t.Error(err)
	}
	if _, err := create(t, m, vm.Request{Name: "late", Lease: lease}); errs.KindOf(err) != errs.Conflict {
		t.Errorf("a VM for a client that is gone: %v", err)
	}
	if found := w.census(); found != nil {
		t.Errorf("left behind: %v", found)
	}
}

func TestWhatCannotBeRemovedSaysSo(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	v, err := create(t, m, vm.Request{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	w.set(func() { w.fail = "remove" })
	if err := m.Delete(t.Context(), v.ID, true); err == nil || !strings.Contains(err.Error(), "remove fails") {
		t.Errorf("got %v", err)
	}
	if v := settled(t, m, "web", vm.Failed); !strings.Contains(v.Reason, "remove fails") {
		t.Errorf("reason is %q", v.Reason)
	}
	if _, err := os.Stat(v.Disk.Path); err != nil {
		t.Errorf("the disk went before the machine: %v", err)
	}
	end()
	w.set(func() { w.fail = "" })
	m, end = w.daemon()
	defer end()
	if err := m.Delete(t.Context(), v.ID, false); err != nil {
		t.Errorf("once it can be: %v", err)
	}
	if found := w.census(); found != nil {
		t.Errorf("left behind: %v", found)
	}
}

func TestRefusedRequests(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	n := func(i int) *int { return &i }
	b := func(i int64) *int64 { return &i }
	if _, err := create(t, m, vm.Request{Name: "taken"}); err != nil {
		t.Fatal(err)
	}
	before := w.census()
	for name, req := range map[string]vm.Request{
		"taken":        {Name: "taken"},
		"slash":        {Name: "a/b"},
		"dots":         {Name: ".."},
		"newline":      {Name: "a\nb"},
		"escape":       {Name: "a\x1b[31m"},
		"upper case":   {Name: "Web"},
		"hyphen":       {Name: "-web"},
		"an id":        {Name: "0123456789ab"},
		"64 letters":   {Name: strings.Repeat("a", 64)},
		"image":        {Image: "nonesuch"},
		"image path":   {Image: "../tiny"},
		"kernel":       {Kernel: "nonesuch"},
		"no CPU":       {CPUs: n(0)},
		"minus a CPU":  {CPUs: n(-1)},
		"10,000 CPUs":  {CPUs: n(10000)},
		"no memory":    {MemoryBytes: b(0)},
		"a byte":       {MemoryBytes: b(1)},
		"the host's":   {MemoryBytes: b(9 << 30)},
		"minus memory": {MemoryBytes: b(-1 << 30)},
		"small disk":   {DiskBytes: b(1<<20 - 512)},
		"no disk":      {DiskBytes: b(0)},
		"huge disk":    {DiskBytes: b(1 << 62)},
		"net":          {Net: "wifi"},
		"bridge":       {Net: "bridge"},
		"accel":        {Accel: "warp"},
		"kvm":          {Accel: "kvm"},
		"backend":      {Backend: "bochs"},
		"wait":         {Wait: "forever"},
		"env":          {Env: []string{"NOVALUE"}},
		"env key":      {Env: []string{"=x"}},
	} {
		_, err := create(t, m, req)
		if kind := errs.KindOf(err); err == nil || kind == errs.Internal {
			t.Errorf("%s: got %v (%s)", name, err, kind)
		}
	}
	if after := w.census(); !reflect.DeepEqual(before, after) {
		t.Errorf("left behind: %v, was %v", after, before)
	}
	if vms, err := m.List(t.Context()); err != nil || len(vms) != 1 {
		t.Errorf("the store has %d VMs, %v", len(vms), err)
	}
}

func TestReferences(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	ids := map[string]string{}
	for _, name := range []string{"web", "web-2", "db"} {
		v, err := create(t, m, vm.Request{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = v.ID
	}
	for ref, want := range map[string]string{"web": "web", "web-": "web-2", "d": "", "db": "db", ids["db"]: "db", ids["web"][:11]: "web"} {
		v, err := m.Find(t.Context(), ref)
		if want != "" && v.Name != want {
			t.Errorf("%q found %q, %v", ref, v.Name, err)
		}
	}
	if _, err := m.Find(t.Context(), "we"); errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), "web-2 ("+ids["web-2"]+")") {
		t.Errorf("an ambiguous prefix: %v", err)
	}
	for _, ref := range []string{"", "-", "../x", "nonesuch", "*", "%", "_", "\x1b[31m", strings.Repeat("x", 10000)} {
		if _, err := m.Find(t.Context(), ref); err == nil || len(err.Error()) > 400 || strings.ContainsRune(err.Error(), 0x1b) {
			t.Errorf("%.20q: got %.80v", ref, err)
		}
	}
}

func TestUnusedNamesTheUsers(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	if _, err := create(t, m, vm.Request{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	removed := false
	remove := func() error { removed = true; return nil }
	err := m.Unused(t.Context(), "image tiny", func(v vm.VM) bool { return v.Spec.Image == "tiny" }, remove)
	if errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "in use by web") || removed {
		t.Errorf("got %v, removed: %v", err, removed)
	}
	if err := m.Unused(t.Context(), "image x", func(v vm.VM) bool { return v.Spec.Image == "x" }, remove); err != nil || !removed {
		t.Errorf("got %v, removed: %v", err, removed)
	}
}
