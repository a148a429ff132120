package vm_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"banger/internal/errs"
	"banger/internal/vm"
)

// gate is the door before and behind each step of a manager. Armed, it opens n-1 times more
// and then does what it was armed for.
type gate struct {
	mu     sync.Mutex
	n      int
	does   trouble
	call   func()
	cut    bool
	passed []string // labels since it was armed
}

// trouble is what can happen at a step.
type trouble string

const (
	none  trouble = ""
	fails trouble = "fails" // this step reports an error; behind a door it has taken effect
	cuts  trouble = "is cut"
	calls trouble = "is used" // the function given is called, and all goes on
)

var (
	errStep = errors.New("the step fails")
	errCut  = errors.New("the daemon is dead")
)

// arm sets what happens at the nth door from now on.
func (g *gate) arm(n int, does trouble) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n, g.does, g.cut, g.passed = n, does, false, nil
}

// disarm opens the door for good and tells where the trouble was, or "" if it never came.
func (g *gate) disarm() (where string, passed int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.does != none && g.n <= 0 {
		where = g.passed[len(g.passed)+g.n-1]
	}
	passed = len(g.passed)
	g.does, g.cut = none, false
	return where, passed
}

// pass is the door. Of a daemon that has been cut nothing passes any more: it is as good as
// dead, though its goroutines still come to their ends.
func (g *gate) pass(label string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cut {
		return errCut
	}
	if g.does == none {
		return nil
	}
	g.passed = append(g.passed, label)
	if g.n--; g.n != 0 {
		return nil
	}
	switch g.does {
	case cuts:
		g.cut = true
		return errCut
	case calls:
		g.call()
		return nil
	}
	return fmt.Errorf("%s: %w", label, errStep)
}

// audit compares what the store says with the host, when nothing is under way, and returns
// what does not fit. After a step that failed without a recovery a VM may still be on its way
// to somewhere, if unsettled is set.
func (w *world) audit(m *vm.Manager, unsettled bool) (wrong []string) {
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	ctx := context.WithoutCancel(w.t.Context())
	found, err := m.Census(ctx)
	if err != nil {
		bad("census: %v", err)
	}
	for _, f := range found {
		if f.Problem != "" {
			bad("%s %s of VM %s: %s", f.Kind, f.Name, f.VM, f.Problem)
		}
	}
	vms, err := m.List(ctx)
	if err != nil {
		bad("list: %v", err)
	}
	for _, v := range vms {
		for _, text := range w.judge(m, v, unsettled) {
			bad("VM %s, %s (%s): %s", v.Name, v.State, v.Reason, text)
		}
	}
	return wrong
}

// judge tells what is wrong with one VM.
func (w *world) judge(m *vm.Manager, v vm.VM, unsettled bool) (wrong []string) {
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	w.mu.Lock()
	machine := w.machines[m.Directory(v)]
	ours := machine != nil && v.Machine != nil && machine.rec == *v.Machine
	paused := machine != nil && machine.paused
	w.mu.Unlock()
	resources, err := m.Store.Resources(context.WithoutCancel(w.t.Context()), v.ID)
	if err != nil {
		bad("%v", err)
	}
	has := func(k vm.Kind) string {
		for _, r := range resources {
			switch {
			case r.Kind == k && r.Live:
				return "live"
			case r.Kind == k:
				return "pending"
			}
		}
		return "none"
	}
	if v.State != vm.Failed && !unsettled && (has(vm.KindDisk) != "live" || has(vm.KindDirectory) != "live") {
		bad("disk is %s, directory is %s", has(vm.KindDisk), has(vm.KindDirectory))
	}
	switch v.State {
	case vm.Running, vm.Paused:
		if !ours || has(vm.KindMachine) != "live" {
			bad("its machine is %s, the record is right: %v", has(vm.KindMachine), ours)
		}
		if paused != (v.State == vm.Paused) {
			bad("its machine is paused: %v", paused)
		}
	case vm.Stopped, vm.Suspended:
		if !unsettled && (v.State == vm.Suspended) != v.Suspended {
			bad("a machine of it is kept: %v", v.Suspended)
		}
		if !(unsettled && v.State == vm.Suspended) && (machine != nil || v.Machine != nil || has(vm.KindMachine) != "none" || has(vm.KindAttached) != "none") {
			bad("it has a machine: %v, %v, %s, an attached disk: %s", machine != nil, v.Machine != nil, has(vm.KindMachine), has(vm.KindAttached))
		}
	case vm.Failed:
		if v.Reason == "" {
			bad("it does not say why")
		}
		if machine != nil && has(vm.KindMachine) == "none" {
			bad("its machine runs on")
		}
	default:
		if !unsettled {
			bad("it is not settled")
		}
	}
	return wrong
}

// endMachine has the machine in dir end by itself.
func (w *world) endMachine(dir string) {
	w.mu.Lock()
	machine := w.machines[dir]
	w.mu.Unlock()
	if machine != nil {
		machine.end("it had enough", false)
	}
}

// clear removes all VMs and returns what is then still there.
func (w *world) clear(m *vm.Manager) (wrong []string) {
	ctx := context.WithoutCancel(w.t.Context())
	vms, err := m.List(ctx)
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	for _, v := range vms {
		if err := m.Delete(ctx, v.ID, true); err != nil && errs.KindOf(err) != errs.NotFound {
			wrong = append(wrong, fmt.Sprintf("rm %s: %v", v.Name, err))
		}
	}
	if vms, err = m.List(ctx); err != nil || len(vms) > 0 {
		wrong = append(wrong, fmt.Sprintf("the store still has %d VMs, %v", len(vms), err))
	}
	return slices.Concat(wrong, w.census())
}
