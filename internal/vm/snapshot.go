package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/op"
	"banger/internal/template"
)

// Snapshot keeps what a VM's machine and its disk are at one moment, under a name that it invents
// if there is none. The VM is as it was before: one that runs halts only while it is saved.
func (m *Manager) Snapshot(ctx context.Context, o *op.Operation, id, name string) (template.Template, error) {
	return m.snapshot(ctx, o, id, template.Template{Name: name})
}

func (m *Manager) snapshot(ctx context.Context, o *op.Operation, id string, t template.Template) (template.Template, error) {
	v, unlock, err := m.lock(ctx, id, "kept as a snapshot")
	if err != nil {
		return t, err
	}
	defer unlock()
	if t.Name == "" {
		t.Name = shorten(v.Name) + "-" + randomHex(4)
	}
	r, err := m.machineOf(v)
	if err != nil {
		return t, err
	}
	t.Snapshot, t.Of, t.Image, t.Kernel, t.CPUs, t.MemoryBytes = true, v.Name, v.Spec.Image, v.Spec.Kernel, v.Spec.CPUs, v.Spec.MemoryBytes
	t.Net, t.Accel, t.From, t.MAC, t.CreatedAt = string(v.Spec.Net), string(v.Machine.Accel), v.Base, v.MAC, time.Now().UTC()
	if t.Machine, err = m.keyToSave(ctx, v); err != nil {
		return t, err
	}
	if t.Spec, err = json.Marshal(v.Spec); err != nil {
		return t, err
	}
	now := &making{cancel: func() {}, done: make(chan struct{})}
	m.making.add(now)
	defer m.making.drop(now)
	stage, err := m.Templates.Begin(t.Name)
	switch errs.KindOf(err) {
	case errs.Conflict:
		return t, errs.New(errs.Conflict, "there is a snapshot or a template called %s already", t.Name).
			Try("choose another name, or remove that: banger snapshot rm %s", t.Name)
	case errs.Invalid:
		return t, errs.New(errs.Invalid, "no snapshot can be called %q", t.Name).Try("use 1 to 63 of a-z, 0-9 and -, with no - at either end")
	}
	if err != nil {
		return t, err
	}
	defer stage.Discard()
	m.making.in(now, stage.Dir)
	o.Stage("saving the machine", 0, 0)
	open := r.streams()
	if t.Disk, err = m.saveMoment(ctx, v, r, stage); err != nil {
		return t, err
	}
	if open > 0 && v.Spec.Backend == hypervisor.Firecracker {
		o.Warn(fmt.Sprintf("VM %s runs on, but Firecracker has cut off what was connected to it by exec, cp, ssh or port --forward; connections of its network are not touched", v.Name))
	}
	o.Stage("making it durable", 0, 0)
	return m.Templates.Commit(ctx, stage, t)
}

// saveMoment saves the machine of v with its disk and has it go on, if it ran.
func (m *Manager) saveMoment(ctx context.Context, v VM, r *running, stage *template.Stage) (disk.Base, error) {
	memory := inMemory(v.Spec.MemoryBytes)
	if memory == nil {
		memory = stage.Memory
	} else {
		defer memory.Close()
	}
	volume, err := m.saveStill(ctx, v, r, memory, stage)
	if err != nil || memory == stage.Memory {
		return volume, err
	}
	return volume, errors.Join(disk.CopySparse(ctx, stage.Memory, memory), stage.Memory.Truncate(v.Spec.MemoryBytes))
}

// inMemory is a file in the host's memory for that of a machine which has so many bytes, or nil
// where there is no room: what stands still is not to wait for a disk.
func inMemory(bytes int64) *os.File {
	if free, err := host.AvailableBytes("/"); err != nil || free < 2*bytes {
		return nil
	}
	fd, err := unix.MemfdCreate("saving", unix.MFD_CLOEXEC)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "saving")
}

// saveStill is the part of saveMoment for which the machine stands still.
func (m *Manager) saveStill(ctx context.Context, v VM, r *running, memory *os.File, stage *template.Stage) (disk.Base, error) {
	var volume disk.Volume
	begin := time.Now()
	err := r.machine.Save(ctx, memory, stage.State)
	if err == nil {
		volume, err = m.Disks.Copy(ctx, v.Disk, disk.Home{ID: v.ID, Dir: stage.Dir})
	}
	agreed := m.agree(ctx, v.ID, r)
	if agreed != nil { // to stand still is worse than to be told twice to go on
		agreed = m.agree(ctx, v.ID, r)
	}
	if agreed != nil {
		_, told := m.update(context.WithoutCancel(ctx), v.ID, "not resumed", func(x *VM) error {
			return x.To(Paused, "it did not go on after it was saved; banger resume "+x.Name+" tries again")
		})
		// What reports an error may have taken effect.
		return volume.Freeze(), errors.Join(err, agreed, told, m.agree(ctx, v.ID, r))
	}
	m.Log.Info("a machine was saved", "vm", v.ID, "took", time.Since(begin))
	if err != nil || v.State != Running {
		return volume.Freeze(), err
	}
	ctx, cancel := context.WithTimeout(ctx, agreeLimit) // its agent may be dead
	defer cancel()
	g, err := r.channel(ctx)
	if err == nil {
		err = setClock(ctx, g, 0) // which stood still with it
	}
	if err != nil {
		m.Log.Warn("set the clock of a VM after it was saved", "vm", v.ID, "err", err)
	}
	return volume.Freeze(), nil
}

// snapshotNamed returns the snapshot of that name.
func (m *Manager) snapshotNamed(name string) (template.Template, error) {
	t, err := m.Templates.Get(name)
	none := errs.KindOf(err) == errs.NotFound || errs.KindOf(err) == errs.Invalid // what can't be a name is none's
	if none || err == nil && (!t.Snapshot || t.Retired()) {
		return t, errs.New(errs.NotFound, "there is no snapshot %.70q", name).Try("banger snapshot ls lists those there are")
	}
	return t, err
}

// ListSnapshots returns the snapshots, the newest first, with what lies on the disk of each: names
// of VMs and, after the word, of snapshots.
func (m *Manager) ListSnapshots(ctx context.Context) ([]template.Template, map[string][]string, error) {
	all, users, err := m.savedMachines(ctx)
	all = slices.DeleteFunc(all, func(t template.Template) bool { return !t.Snapshot || t.Fleeting })
	slices.SortFunc(all, func(a, b template.Template) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return all, users, err
}

// RemoveSnapshot removes a snapshot. errs.Conflict if the disks of VMs or of others lie on it.
func (m *Manager) RemoveSnapshot(ctx context.Context, name string) error {
	err := m.withoutUsers(ctx, func(all []template.Template, users map[string][]string) error {
		if !slices.ContainsFunc(all, func(t template.Template) bool { return t.Name == name && t.Damaged != "" }) {
			if _, err := m.snapshotNamed(name); err != nil {
				return err
			}
		}
		if by := users[name]; len(by) > 0 {
			return errs.New(errs.Conflict, "snapshot %s is in use by %s", name, sentenceList(by)).
				Try("remove what lies on it first: banger rm, banger snapshot rm")
		}
		return m.Templates.Remove(name)
	})
	if err == nil {
		err = m.dropRetired(ctx)
	}
	return err
}

func (m *Manager) isRetired(name string) bool {
	t, err := m.Templates.Get(name)
	return err == nil && t.Retired()
}

// dropRetired removes what nothing goes on from any more and no disk lies on, and what only such
// disks have lain on.
func (m *Manager) dropRetired(ctx context.Context) error {
	for {
		dropped := false
		err := m.withoutUsers(ctx, func(all []template.Template, users map[string][]string) error {
			for _, t := range all {
				if t.Retired() && len(users[t.Name]) == 0 {
					dropped = true
					return m.Templates.Remove(t.Name)
				}
			}
			return nil
		})
		if err != nil || !dropped {
			return err
		}
	}
}

// fillFromSnapshot is fill for a VM that goes on from a snapshot: what its machine is, is settled.
func (m *Manager) fillFromSnapshot(req Request) (Spec, error) {
	t, err := m.snapshotNamed(req.Snapshot)
	if err != nil {
		return Spec{}, err
	}
	var s Spec
	if err := json.Unmarshal(t.Spec, &s); err != nil {
		return s, errs.New(errs.Internal, "snapshot %s does not tell of what it is", t.Name).Because(err)
	}
	if req.Name != "" {
		if err := CheckName(req.Name); err != nil {
			return s, err
		}
	}
	own := Request{Name: req.Name, Env: req.Env, Forwards: req.Forwards, Isolated: req.Isolated, HostAccess: req.HostAccess, AutoRemove: req.AutoRemove,
		Autostart: req.Autostart, Lease: req.Lease, Start: req.Start, Boot: req.Boot, Wait: req.Wait, Snapshot: req.Snapshot}
	if !reflect.DeepEqual(own, req) || req.Boot == Cold {
		return s, errs.New(errs.Invalid, "a VM from a snapshot has the machine that was kept, and goes on where that was").
			Try("leave out image, kernel, size, network and the like, and --fresh")
	}
	if err := errors.Join(req.Wait.check(), req.Boot.check()); err != nil {
		return s, err
	}
	for _, kv := range req.Env {
		if err := checkEnv(kv); err != nil {
			return s, err
		}
	}
	s.Env = slices.Concat(s.Env, req.Env)
	s.AutoRemove, s.Autostart, s.Lease, s.Throwaway, s.Pooled, s.Snapshot = req.AutoRemove, req.Autostart, req.Lease, false, false, t.Name
	req.Net = string(s.Net)
	return s, m.fillNet(req, &s)
}

// layOnSnapshot has v's disk lie on that of its snapshot. m.artefacts is held.
func (m *Manager) layOnSnapshot(v VM) (VM, error) {
	t, err := m.snapshotNamed(v.Spec.Snapshot)
	if err == nil {
		err = m.Templates.Check(t)
	}
	if err != nil {
		return v, err
	}
	v.Base, v.Template, v.Pristine = t.Disk, t.Name, true
	m.used(t)
	return v, nil
}

// fromSnapshot starts a VM whose guest has not run since the snapshot that it is of.
func (m *Manager) fromSnapshot(ctx context.Context, o *op.Operation, v VM, begin time.Time, wait Wait, boot Boot) (VM, error) {
	if boot == Cold { // its guest writes to the disk before its row tells that it runs
		v, err := m.update(ctx, v.ID, "not from its snapshot", func(x *VM) error {
			x.leaveSnapshot()
			return nil
		})
		if err != nil {
			return v, err
		}
		return m.boot(ctx, o, v, begin, wait, nil)
	}
	t, err := m.fromWhich(ctx, v)
	if err != nil {
		return v, errs.New(errs.Unavailable, "VM %s can't go on from snapshot %s", v.Name, v.Spec.Snapshot).Because(err).
			Try("boot it from the snapshot's disk: banger start --fresh %s", v.Name)
	}
	return m.boot(ctx, o, v, begin, wait, fromTemplate(t))
}

// leaveSnapshot records that nothing of a VM needs the snapshot that it is of, if it is of one: its
// guest runs, and has mapped what it reads of it, and its disk is a copy.
func (v *VM) leaveSnapshot() {
	if v.Spec.Snapshot == "" || v.Template == "" {
		return
	}
	v.Template, v.Pristine, v.Base = "", false, v.Disk.Freeze() // a whole disk lies on nothing else
	if v.Disk.On != nil {
		v.Base = *v.Disk.On
	}
}

// maxForks bounds how many copies are made at once.
const maxForks = 100

// Fork makes n live copies of a VM, which go on where it is, under identities of their own. Of
// req only what is not the machine's counts; with a name the copies are called by that and a
// number. If one can't be made none is left.
func (m *Manager) Fork(ctx context.Context, o *op.Operation, id string, n int, req Request) (copies []VM, err error) {
	if n < 1 || n > maxForks {
		return nil, errs.New(errs.Invalid, "a VM can't be forked %d times", n).Try("choose 1 to %d", maxForks)
	}
	t, err := m.snapshot(ctx, o, id, template.Template{Name: "fork-" + randomHex(4), Fleeting: true})
	if err != nil {
		return nil, err
	}
	defer func() {
		end := context.WithoutCancel(ctx)
		err = errors.Join(err, m.Templates.Retire(t), m.dropRetired(end))
	}()
	req.Snapshot, req.Start = t.Name, true
	copies = make([]VM, n)
	failed := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			one := req
			if req.Name != "" && n > 1 {
				one.Name = fmt.Sprintf("%s-%d", req.Name, i+1)
			}
			copies[i], failed[i] = m.Create(ctx, o, one)
		})
	}
	o.Stage("starting the copies", 0, 0)
	wg.Wait()
	if err = errors.Join(failed...); err == nil {
		return copies, nil
	}
	for _, v := range copies {
		if v.ID != "" { // it runs, or its guest has, and stays to be looked at
			err = errors.Join(err, m.Delete(context.WithoutCancel(ctx), v.ID, true))
		}
	}
	return nil, err
}
