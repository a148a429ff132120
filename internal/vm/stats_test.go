package vm_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"banger/internal/errs"
	"banger/internal/hypervisor"
	"banger/internal/op"
	"banger/internal/vm"
)

// What is asked of a machine's memory and disk its VMM is told, of the root disk only, each time.
func TestLimitsAndHugePagesReachTheMachine(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	limit := hypervisor.Limit{Bytes: 50 << 20, Requests: 100}
	v := made(t, m, vm.Request{Name: "web", HugePages: true, DiskLimit: limit})
	for range 2 {
		spec := w.machineOf(m, v).spec
		if !spec.HugePages || spec.Disks[0].Limit != limit {
			t.Errorf("its machine is %+v", spec)
		}
		for _, d := range spec.Disks[1:] {
			if d.Limit != (hypervisor.Limit{}) {
				t.Errorf("a disk that others have too is limited: %+v", d)
			}
		}
		if _, err := operation(t, func(ctx context.Context, o *op.Operation) error { _, err := m.Suspend(ctx, o, v.ID); return err }); errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "" {
			t.Errorf("a machine of huge pages is suspended: %v", err)
		}
		if _, err := operation(t, func(ctx context.Context, o *op.Operation) error {
			if _, err := m.Stop(ctx, o, v.ID, 0); err != nil {
				return err
			}
			return doStart(ctx, m, o, v.ID)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := create(t, m, vm.Request{DiskLimit: hypervisor.Limit{Bytes: -1}}); errs.KindOf(err) != errs.Invalid {
		t.Errorf("a limit below nothing: %v", err)
	}
}

// What a VMM tells of its machine is part of its stats, and what it complains of can be asked for.
func TestStatsTellWhatTheVMMKnows(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	v := made(t, m, vm.Request{Name: "web"})
	w.set(func() {
		w.complaint = "no room"
		w.report = hypervisor.Report{Balloon: &hypervisor.Balloon{TotalBytes: 7}, Devices: &hypervisor.Devices{DiskThrottled: 3}}
	})
	s, err := m.Stats(t.Context(), "web")
	if err != nil || s.Balloon == nil || s.Balloon.TotalBytes != 7 || s.Devices == nil || s.Devices.DiskThrottled != 3 || s.Guest == nil {
		t.Errorf("%+v, %v", s, err)
	}
	if got := m.Complaint(v); got != "no room" {
		t.Errorf("it complains of %q", got)
	}
	if _, err := operation(t, func(ctx context.Context, o *op.Operation) error { _, err := m.Stop(ctx, o, v.ID, 0); return err }); err != nil {
		t.Fatal(err)
	}
	if got := m.Complaint(v); got != "" {
		t.Errorf("stopped, it complains of %q", got)
	}
}

// Who asks for a VMM that is not up to much is told so.
func TestDoubtsAreTold(t *testing.T) {
	w := newWorld(t)
	w.doubts = "it is too old"
	m, end := w.daemon()
	defer end()
	for backend, want := range map[string]bool{"firecracker": true, "qemu": false} {
		warned, err := operation(t, func(ctx context.Context, o *op.Operation) error {
			_, err := m.Create(ctx, o, vm.Request{Backend: backend})
			return err
		})
		if err != nil || slices.Contains(warned, w.doubts) != want {
			t.Errorf("%s: warned of %q, %v", backend, warned, err)
		}
	}
}

// Who snapshots a VM of Firecracker's is told that this cuts off what is connected to its agent, if
// anything is.
func TestASnapshotByFirecrackerSaysWhatItCutsOff(t *testing.T) {
	w := newWorld(t)
	w.budget = 1 << 30
	m, end := w.daemon()
	defer end()
	for backend, want := range map[string]int{"firecracker": 1, "qemu": 0} {
		v := made(t, m, vm.Request{Backend: backend})
		for _, streams := range []int{0, 2} {
			w.set(func() { w.streams = streams })
			warned, err := operation(t, func(ctx context.Context, o *op.Operation) error {
				_, err := m.Snapshot(ctx, o, v.ID, "")
				return err
			})
			if err != nil || len(warned) != min(want, streams) || len(warned) > 0 && !strings.Contains(warned[0], "cut off") {
				t.Errorf("%s with %d streams: warned of %q, %v", backend, streams, warned, err)
			}
		}
	}
}
