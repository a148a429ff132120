package vm

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/network"
	"banger/internal/op"
)

// Finding is a host object of banger's, or the lack of one.
type Finding struct {
	Kind    string // directory, disk, machine or a kind of [host.Object]
	Name    string // of the object: a path, a pid, a device
	VM      string // id of the VM that it belongs to, as far as can be told
	Problem string // empty: all is as it should be

	object host.Object
}

// kindStage is a template in the making, when nobody is making it.
const kindStage = "template"

// The problems that there are.
const (
	unexplained = "no row explains it"
	missing     = "it should be there and is not"
)

// explains tells which resource of a VM accounts for an object of this kind. A mount is
// never banger's.
var explains = map[string]Kind{
	"directory": KindDirectory, "process": KindMachine, "socket": KindMachine, "cgroup": KindMachine, "loop": KindAttached, "dm": KindAttached,
	"hosts line": KindMachine, "link": KindNetwork,
}

// shared are the kinds of objects that are there for all VMs on the bridge: they are of no
// VM, and explained by any that is on it. So is the bridge itself, a link.
var shared = []string{"link", "address", "route", "nft", "sysctl"}

// Census compares what exists on the host for VMs with what the store says should. What
// comes or goes while it looks is not a problem: only one that two looks find is.
func (m *Manager) Census(ctx context.Context) ([]Finding, error) {
	first, err := m.look(ctx)
	if err != nil || !slices.ContainsFunc(first, Finding.wrong) {
		return first, err
	}
	second, err := m.look(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(second, func(f Finding) bool {
		return f.wrong() && !slices.ContainsFunc(first, func(g Finding) bool { return f == g })
	}), nil
}

func (f Finding) wrong() bool { return f.Problem != "" }

// look takes one look at the host, and then at the store.
func (m *Manager) look(ctx context.Context) ([]Finding, error) {
	objects, err := m.Objects()
	if err != nil {
		return nil, err
	}
	links, err := m.Network.Objects()
	if err != nil {
		return nil, err
	}
	objects = append(objects, links...)
	dirs, err := m.Dirs.List()
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, id := range dirs {
		found = append(found, Finding{Kind: "directory", Name: m.dir(id), VM: id})
	}
	for _, o := range objects {
		id, _, _ := strings.Cut(o.Path, "/")
		found = append(found, Finding{Kind: o.Kind, Name: o.Name, VM: id, object: o})
	}
	stages, err := m.strayStages()
	if err != nil {
		return nil, err
	}
	for _, dir := range stages {
		found = append(found, Finding{Kind: kindStage, Name: dir})
	}
	vms, err := m.Store.List(ctx)
	if err != nil {
		return nil, err
	}
	rows := map[string]row{}
	for _, v := range vms {
		owned, err := m.Store.Resources(ctx, v.ID)
		if err != nil {
			return nil, err
		}
		rows[v.ID] = row{v, owned}
	}
	bridged := slices.ContainsFunc(vms, func(v VM) bool {
		_, known := rows[v.ID].has(KindNetwork)
		return known
	})
	for i, f := range found {
		if f.VM == "" && slices.Contains(shared, f.Kind) && bridged {
			continue
		}
		if r, known := rows[f.VM]; !known || !r.explains(f) {
			found[i].Problem = unexplained
		}
	}
	for _, v := range vms {
		found = append(found, m.lacking(rows[v.ID], found)...)
	}
	return found, nil
}

// row is a VM with the resources that the store says it has.
type row struct {
	VM
	owned []Resource
}

func (r row) has(k Kind) (live, known bool) {
	for _, o := range r.owned {
		if o.Kind == k {
			return o.Live, true
		}
	}
	return false, false
}

// explains tells whether the VM's row accounts for what was found.
func (r row) explains(f Finding) bool {
	kind, ours := explains[f.Kind]
	live, known := r.has(kind)
	if !ours || !known {
		return false
	}
	if f.Kind == "process" && live { // then this very one
		return r.Machine != nil && r.Machine.Process == f.object.Process
	}
	return true
}

// lacking returns the live resources of a VM that are not there.
func (m *Manager) lacking(r row, found []Finding) (lack []Finding) {
	there := func(kind string) bool {
		return slices.ContainsFunc(found, func(f Finding) bool { return f.VM == r.ID && f.Kind == kind })
	}
	add := func(kind, name string) {
		lack = append(lack, Finding{Kind: kind, Name: name, VM: r.ID, Problem: missing})
	}
	if live, _ := r.has(KindDirectory); live && !there("directory") {
		add("directory", m.dir(r.ID))
	}
	if live, _ := r.has(KindDisk); live {
		if _, err := m.Disks.Usage(r.Disk); errs.KindOf(err) == errs.NotFound {
			add("disk", r.Disk.Path)
		}
	}
	// In other states it may have ended already, though the row that it had is left.
	if live, _ := r.has(KindMachine); live && (r.State == Running || r.State == Paused) && !there("process") {
		add("machine", "of VM "+r.Name)
	}
	if live, _ := r.has(KindNetwork); live && !there("link") {
		add("link", network.TAP(r.ID))
	}
	return lack
}

// Sweep removes what the census finds that no row explains and that is proven banger's: it
// lies in the directory of a VM that does not exist. It returns what it removed.
func (m *Manager) Sweep(ctx context.Context, o *op.Operation) ([]Finding, error) {
	found, err := m.Census(ctx)
	if err != nil {
		return nil, err
	}
	stray := map[string][]Finding{}
	for _, f := range found {
		if f.Problem == unexplained && anID.MatchString(f.VM) && !slices.Contains([]string{"mount", "hosts line", "link"}, f.Kind) {
			stray[f.VM] = append(stray[f.VM], f)
		}
	}
	var gone []Finding
	for id, fs := range stray {
		o.Stage("removing what is left of VM "+id, 0, 0)
		removed, sweepErr := m.sweep(ctx, id, fs)
		if sweepErr == nil && removed {
			gone = append(gone, fs...)
		}
		err = errors.Join(err, sweepErr)
	}
	if net := slices.DeleteFunc(slices.Clone(found), func(f Finding) bool { return f.Problem != unexplained || !slices.Contains(shared, f.Kind) }); len(net) > 0 {
		tidyErr := m.Network.Tidy(ctx)
		if tidyErr == nil {
			gone = append(gone, net...)
		}
		err = errors.Join(err, tidyErr)
	}
	for _, f := range found {
		if f.Kind != kindStage || f.Problem == "" {
			continue
		}
		stageErr := os.RemoveAll(f.Name)
		if stageErr == nil {
			gone = append(gone, f)
		}
		err = errors.Join(err, stageErr)
	}
	slices.SortFunc(gone, func(a, b Finding) int { return strings.Compare(a.Name, b.Name) })
	return gone, err
}

// sweep removes all that is left of a VM that has no row, and the machine of one that is not
// to have any. Verbs on the VM are kept off meanwhile.
func (m *Manager) sweep(ctx context.Context, id string, fs []Finding) (removed bool, err error) {
	unlock, err := m.locks.Lock(ctx, id, "swept")
	if err != nil {
		return false, err
	}
	defer unlock()
	v, err := m.Store.Get(ctx, id)
	known := err == nil
	switch {
	case known && v.State.HasMachine(): // its machine needs what it has
		return false, nil
	case !known && errs.KindOf(err) != errs.NotFound:
		return false, err
	}
	dir := m.dir(id)
	err = nil
	for _, f := range fs {
		if f.Kind == "process" {
			rec := hypervisor.Record{Process: f.object.Process, Dir: dir, VMID: id}
			err = errors.Join(err, m.Hypervisor.Remove(ctx, id, dir, &rec))
		}
	}
	if err == nil { // one that no look has found, and sockets
		err = m.Hypervisor.Remove(ctx, id, dir, nil)
	}
	if err == nil && !known {
		err = errors.Join(m.Disks.Remove(ctx, m.home(id)), m.Dirs.Remove(id))
	}
	return err == nil, err
}
