package firecracker

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/hypervisor"
	"banger/internal/jail"
)

// saveTo saves a machine to files in a directory.
func saveTo(t *testing.T, m hypervisor.Machine, dir string) (hypervisor.Saved, error) {
	t.Helper()
	s := hypervisor.Saved{Memory: filepath.Join(dir, "memory"), State: filepath.Join(dir, "state")}
	memory, err := os.Create(s.Memory)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	state, err := os.Create(s.State)
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	return s, m.Save(t.Context(), memory, state)
}

// What is saved comes out of the jail by copies with holes, and nothing of it stays there; a machine that
// goes on from it is told of that and of its own network, and of nothing else.
func TestSaveAndGoOn(t *testing.T) {
	spec := goodSpec(t)
	_, err := os.Stat("/dev/kvm")
	spec.Jailed = jail.Check() == nil && err == nil
	h := fake(t, script{})
	m, err := launch(t, h, spec)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := saveTo(t, m, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.ReadFile(saved.Memory)
	if want := append(make([]byte, 1<<20), "memory"...); err != nil || !bytes.Equal(memory, want) {
		t.Errorf("the memory has %d bytes, %v", len(memory), err)
	}
	var st unix.Stat_t
	if err := unix.Stat(saved.Memory, &st); err != nil || st.Blocks*512 > 64<<10 {
		t.Errorf("zeros take %d bytes of the disk, %v", st.Blocks*512, err)
	}
	if state, err := os.ReadFile(saved.State); err != nil || string(state) != "state" {
		t.Errorf("the state is %q, %v", state, err)
	}
	left, err := filepath.Glob(filepath.Join(spec.Dir, socketDir, "saved*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}

	if err := os.Truncate(saved.Memory, spec.MemoryBytes); err != nil {
		t.Fatal(err)
	}
	next := goodSpec(t)
	next.Dir, next.From = filepath.Join(t.TempDir(), next.VMID), &saved
	if _, err := launch(t, h, next); err != nil {
		t.Fatal(err)
	}
	told, err := os.ReadFile(filepath.Join(next.Dir, "requests"))
	want := "GET / \nPUT /snapshot/load {\"snapshot_path\":\"" + saved.State + "\",\"mem_backend\":{\"backend_type\":\"File\",\"backend_path\":\"" + saved.Memory +
		"\"},\"network_overrides\":[{\"iface_id\":\"net0\",\"host_dev_name\":\"bgr0123456789ab\"}]}\n"
	if err != nil || string(told) != want {
		t.Errorf("it was told %q, not %q; %v", told, want, err)
	}
	if disk, err := os.Readlink(filepath.Join(next.Dir, diskLink(0))); err != nil || disk != next.Disks[0].Path {
		t.Errorf("its disk is %q, %v", disk, err)
	}
}

// A machine that can't be saved runs on, and leaves no files; so does one of a version that can't.
func TestWhatCantBeSaved(t *testing.T) {
	for name, s := range map[string]script{
		"refused": {Answers: map[string]answer{"PUT /snapshot/create": {Status: 400, Body: `{"fault_message":"no room"}`}}},
		"too old": {Version: "1.11.0"},
	} {
		spec := goodSpec(t)
		m, err := launch(t, fake(t, s), spec)
		if err != nil {
			t.Fatal(err)
		}
		_, err = saveTo(t, m, t.TempDir())
		if s.Version != "" && errs.KindOf(err) != errs.Unavailable || s.Version == "" && (err == nil || !strings.Contains(err.Error(), "no room")) {
			t.Errorf("%s: %v", name, err)
		}
		told, err := os.ReadFile(filepath.Join(spec.Dir, "requests"))
		if err != nil || s.Version == "" && !strings.HasSuffix(string(told), "PATCH /vm {\"state\":\"Resumed\"}\n") {
			t.Errorf("%s: it was told %q, %v", name, told, err)
		}
		left, err := filepath.Glob(filepath.Join(spec.Dir, socketDir, "saved*"))
		if err != nil || len(left) > 0 {
			t.Errorf("%s: left: %q, %v", name, left, err)
		}
	}
}
