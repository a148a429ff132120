package hypervisortest

import (
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/hypervisor"
)

// save saves a machine, in files of its own.
func save(t *testing.T, m hypervisor.Machine) hypervisor.Saved {
	t.Helper()
	dir := t.TempDir()
	s := hypervisor.Saved{Memory: filepath.Join(dir, "memory"), State: filepath.Join(dir, "state")}
	var files []*os.File
	for _, path := range []string{s.Memory, s.State} {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	if err := m.Save(bounded(t), files[0], files[1]); err != nil {
		t.Fatal(err)
	}
	return s
}

// from launches a machine, called so, that goes on from a saved one.
func (s Suite) from(t *testing.T, saved hypervisor.Saved, spec hypervisor.MachineSpec, id string) hypervisor.Machine {
	t.Helper()
	spec.VMID, spec.Dir, spec.From = spec.VMID+id, t.TempDir(), &saved
	return s.launch(t, spec)
}

func resume(t *testing.T, m hypervisor.Machine) {
	t.Helper()
	if err := m.Resume(bounded(t)); err != nil {
		t.Fatal(err)
	}
}

var seed = maphash.MakeSeed()

// digest is a hash that is quick also where instructions are translated.
func digest(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var sum maphash.Hash
	sum.SetSeed(seed)
	if _, err := io.Copy(&sum, f); err != nil {
		t.Fatal(err)
	}
	return sum.Sum64()
}

// testSaved saves a machine that runs, has others go on from it, and one from one of those.
func (s Suite) testSaved(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, append([]byte("first words\n"), make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := s.Spec(t.TempDir())
	spec.Disks = []hypervisor.Disk{{Path: disk, Format: "raw", ReadOnly: true}}
	if s.UserNet {
		spec.NICs = []hypervisor.NIC{{Mode: hypervisor.NICUser, MAC: "52:54:00:12:34:56"}}
	}
	source := s.launch(t, spec)
	l := dial(t, source)
	l.ask(t, "fill 32 apples")
	apples := l.ask(t, "sum")
	l.Close()

	saved := save(t, source)
	resume(t, source)
	l = dial(t, source)
	if got := l.ask(t, "sum"); got != apples {
		t.Errorf("the one that was saved has %s after, and %s before", got, apples)
	}
	l.ask(t, "forget") // much of the first memory is zero in the second
	nothing := l.ask(t, "sum")
	l.Close()
	if err := source.Pause(bounded(t)); err != nil {
		t.Fatal(err)
	}
	later := save(t, source)
	checkSparse(t, saved, spec.MemoryBytes)
	memory := digest(t, saved.Memory)

	one, two := s.from(t, saved, spec, "one"), s.from(t, saved, spec, "two")
	resume(t, one)
	resume(t, two)
	for _, m := range []hypervisor.Machine{one, two} {
		l := dial(t, m)
		if got := l.ask(t, "sum"); got != apples {
			t.Errorf("one that goes on has %s, was %s", got, apples)
		}
		if got := l.ask(t, "disk vda"); got != "first words <nil>" {
			t.Errorf("disk: %q", got)
		}
		l.Close()
	}
	testConsole(t, one)
	testPause(t, one)
	l = dial(t, one)
	l.ask(t, "fill 32 pears")
	pears := l.ask(t, "sum")
	l.Close()
	heir := s.from(t, save(t, one), spec, "heir")
	resume(t, heir)
	third := s.from(t, later, spec, "three")
	resume(t, third)
	for m, want := range map[hypervisor.Machine]string{heir: pears, two: apples, third: nothing} {
		l := dial(t, m)
		if got := l.ask(t, "sum"); got != want {
			t.Errorf("%s has %s, want %s", m.Record().VMID, got, want)
		}
		l.say(t, "poweroff")
		waitDone(t, m)
		l.Close()
	}
	if digest(t, saved.Memory) != memory {
		t.Error("machines have written to the memory that they go on from")
	}
	s.testDamaged(t, saved, spec)
}

// checkSparse looks for the holes in a memory that is mostly zero.
func checkSparse(t *testing.T, saved hypervisor.Saved, bytes int64) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(saved.Memory, &st); err != nil {
		t.Fatal(err)
	}
	if used := st.Blocks * 512; st.Size != bytes || used < 32<<20 || used > bytes*3/4 {
		t.Errorf("the memory has %d bytes, of which %d are on the disk", st.Size, used)
	}
}

// testDamaged has nothing go on from a state that is cut short.
func (s Suite) testDamaged(t *testing.T, saved hypervisor.Saved, spec hypervisor.MachineSpec) {
	if err := os.Truncate(saved.State, 10_000); err != nil {
		t.Fatal(err)
	}
	spec.Dir, spec.From = t.TempDir(), &saved
	if m, err := s.New().Launch(bounded(t), spec); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("from half a state: %v, %v", m, err)
	} else {
		t.Log(err)
	}
	wantOnlyLogs(t, spec.Dir)
	if err := os.Truncate(saved.Memory, 1<<20); err != nil {
		t.Fatal(err)
	}
	if m, err := s.New().Launch(bounded(t), spec); errs.KindOf(err) != errs.Invalid {
		t.Errorf("from less memory than it has: %v, %v", m, err)
	}
	s.testKin(t, spec)
}

// testKin tells apart what can't go on from each other.
func (s Suite) testKin(t *testing.T, spec hypervisor.MachineSpec) {
	h := s.New()
	if len(spec.NICs) == 0 {
		spec.NICs = []hypervisor.NIC{{Mode: hypervisor.NICTAP, MAC: "52:54:00:12:34:56", TAPName: "tap"}}
	}
	kin := func(change func(*hypervisor.MachineSpec)) string {
		x := spec
		x.Disks, x.NICs = append([]hypervisor.Disk{}, spec.Disks...), append([]hypervisor.NIC{}, spec.NICs...)
		change(&x)
		k, err := h.Kin(x)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	own := kin(func(*hypervisor.MachineSpec) {})
	for what, change := range map[string]func(*hypervisor.MachineSpec){
		"id":      func(x *hypervisor.MachineSpec) { x.VMID, x.Dir = "other", "/other" },
		"disk":    func(x *hypervisor.MachineSpec) { x.Disks[0].Path = "/other" },
		"address": func(x *hypervisor.MachineSpec) { x.NICs[0].MAC = "52:54:00:65:43:21" },
	} {
		if kin(change) != own {
			t.Errorf("another %s makes another kind of machine", what)
		}
	}
	for what, change := range map[string]func(*hypervisor.MachineSpec){
		"number of CPUs":  func(x *hypervisor.MachineSpec) { x.CPUs++ },
		"memory":          func(x *hypervisor.MachineSpec) { x.MemoryBytes *= 2 },
		"network":         func(x *hypervisor.MachineSpec) { x.NICs = nil },
		"kernel argument": func(x *hypervisor.MachineSpec) { x.Cmdline = []string{"other"} },
	} {
		if kin(change) == own {
			t.Errorf("another %s makes the same kind of machine", what)
		}
	}
}
