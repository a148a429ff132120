package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/guest/proto"
	"banger/internal/op"
	"banger/internal/template"
)

// Templates keeps machines that were saved when they had booted; see [template.Shelf], which
// does.
type Templates interface {
	Find(key string) (template.Template, error)
	Get(name string) (template.Template, error)
	List() ([]template.Template, error)
	Names() ([]string, error)
	Check(t template.Template) error
	Below(b disk.Base) []string
	Use(t template.Template) error
	Begin(name string) (*template.Stage, error)
	Commit(ctx context.Context, st *template.Stage, t template.Template) (template.Template, error)
	Retire(t template.Template) error
	Remove(name string) error
	Leftovers() ([]string, error)
}

// templatesMaking is what templates are being made.
type templatesMaking struct {
	one chan struct{} // full while one is: each takes a machine of its own

	mu  sync.Mutex
	all []*making // that one, and those that wait for it
}

type making struct {
	base   disk.Base // what the VM's disk lies on
	kernel string
	vm     string // name of the VM that it is made of
	dir    string // of its stage
	cancel context.CancelFunc
	done   chan struct{}
}

// wantTemplate has a template be made where v, which was just started, could have used one: where its
// machine is of a kind that can be kept.
func (m *Manager) wantTemplate(v VM, req Request) {
	if req.Start && v.Hardware != "" && req.From == nil && req.Boot == "" && !req.throwaway && m.TemplateBytes > 0 && v.StartKind == Cold && v.Template == "" {
		m.TemplateWanted(v.Spec)
	}
}

// RequestOf asks for a VM like one of this spec.
func RequestOf(s Spec) Request {
	req := Request{Image: s.Image, Kernel: s.Kernel, CPUs: &s.CPUs, MemoryBytes: &s.MemoryBytes, HugePages: s.HugePages, DiskDriver: s.DiskDriver, DiskLimit: s.DiskLimit,
		Net: string(s.Net), Accel: s.Accel, Nested: s.Nested, Unjailed: s.Unjailed, Backend: string(s.Backend)}
	if s.DiskBytes != 0 {
		req.DiskBytes = &s.DiskBytes
	}
	return req
}

// MakeTemplate makes the template from which VMs that are asked for so can start warm, unless
// there is one: a VM of its own is booted, saved when it has finished its boot, and removed.
func (m *Manager) MakeTemplate(ctx context.Context, o *op.Operation, req Request) (_ template.Template, err error) {
	if m.TemplateBytes == 0 {
		return template.Template{}, errs.New(errs.Unavailable, "templates are switched off").Try("set template_budget in the config file")
	}
	spec, err := m.fill(req)
	if err != nil {
		return template.Template{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	now := &making{kernel: spec.Kernel, vm: "template-" + randomHex(4), cancel: cancel, done: make(chan struct{})}
	if err := m.makeOf(now, spec.Image); err != nil {
		return template.Template{}, err
	}
	m.making.add(now)
	defer m.making.drop(now)
	o.Stage("waiting for another template", 0, 0)
	select {
	case m.making.one <- struct{}{}:
	case <-ctx.Done():
		return template.Template{}, ctx.Err()
	}
	defer func() { <-m.making.one }()
	if err := ctx.Err(); err != nil {
		return template.Template{}, err
	}
	if err := m.makeOf(now, spec.Image); err != nil { // its name may mean another by now
		return template.Template{}, err
	}
	t, err := m.templateOf(ctx, spec)
	if errs.KindOf(err) != errs.NotFound || t.Key == "" {
		return t, err
	}
	if t, err = m.makeTemplate(ctx, o, req, spec, t, now); err != nil {
		return t, errs.New(errs.KindOf(err), "the template of image %s can't be made", spec.Image).Because(err)
	}
	if err := m.EvictTemplates(ctx, t.Name); err != nil {
		m.Log.Warn("keep templates within their budget", "err", err)
	}
	return t, nil
}

// makeOf records of which image a template is to be made.
func (m *Manager) makeOf(x *making, name string) error {
	img, err := m.Images.Image(name)
	if err == nil {
		m.making.mu.Lock()
		defer m.making.mu.Unlock()
		x.base = baseOf(img)
	}
	return err
}

func (x *templatesMaking) add(one *making) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.all = append(x.all, one)
}

// in records where one of them is made.
func (x *templatesMaking) in(one *making, dir string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	one.dir = dir
}

func (x *templatesMaking) drop(one *making) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.all = slices.DeleteFunc(x.all, func(y *making) bool { return y == one })
	close(one.done)
}

// that returns those for which is holds. It is called with a lock held.
func (x *templatesMaking) that(is func(*making) bool) (all []*making) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, y := range x.all {
		if is(y) {
			all = append(all, y)
		}
	}
	return all
}

// makeTemplate makes a template that there is not.
func (m *Manager) makeTemplate(ctx context.Context, o *op.Operation, req Request, spec Spec, keys template.Template, now *making) (_ template.Template, err error) {
	lease := m.OpenLease() // with which the VM goes, whatever comes
	defer func() {
		end := context.WithoutCancel(ctx)
		gone := m.EndLease(end, lease)
		if gone != nil { // nobody but this knows of the VM
			gone = m.EndLease(end, lease)
		}
		err = errors.Join(err, gone)
	}()
	req.Name, req.Lease, req.Start, req.Boot, req.Wait, req.throwaway = now.vm, lease, true, Cold, WaitBoot, true
	req.Env, req.Forwards, req.AutoRemove, req.Autostart = nil, nil, false, false
	v, err := m.Create(ctx, o, req)
	if err != nil {
		return template.Template{}, err
	}
	v, unlock, err := m.lock(ctx, v.ID, "made a template")
	if err != nil {
		return template.Template{}, err
	}
	defer unlock()
	o.Stage("saving the machine", 0, 0)
	stage, err := m.Templates.Begin(templateName(spec.Image))
	if err != nil {
		return template.Template{}, err
	}
	defer stage.Discard()
	m.making.in(now, stage.Dir)
	volume, err := m.saveInto(ctx, v, stage)
	if err != nil {
		return template.Template{}, err
	}
	return m.Templates.Commit(ctx, stage, template.Template{
		Name: stage.Name, Key: keys.Key, Machine: keys.Machine, Image: spec.Image, Kernel: spec.Kernel, CPUs: spec.CPUs, MemoryBytes: spec.MemoryBytes,
		Net: string(spec.Net), Accel: string(v.Machine.Accel), From: v.Base, MAC: v.MAC, Disk: volume.Freeze(), CreatedAt: time.Now().UTC(),
	})
}

// templateName invents a name that tells of the image, which may be asked for by a digest.
func templateName(image string) string {
	label := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(image))
	return strings.Trim(label[:min(len(label), 40)], "-") + "-" + randomHex(4)
}

// hangupNoticed is how long an agent is given to find out that its session is over, and to wait for
// the next: nothing tells, and else each clone would have to.
const hangupNoticed = 250 * time.Millisecond

// saveInto saves the machine of v with its disk, and leaves it paused.
func (m *Manager) saveInto(ctx context.Context, v VM, stage *template.Stage) (disk.Volume, error) {
	r, err := m.machineOf(v)
	if err != nil {
		return disk.Volume{}, err
	}
	g, err := r.channel(ctx)
	if err == nil {
		err = g.Call(ctx, proto.MethodShed, nil, nil)
	}
	if err == nil { // a session that is saved would have to be found out to be over first
		err = g.Close()
	}
	if err == nil {
		select {
		case <-time.After(hangupNoticed):
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err == nil {
		err = r.machine.Save(ctx, stage.Memory, stage.State)
	}
	if err != nil {
		return disk.Volume{}, err
	}
	return m.Disks.Copy(ctx, v.Disk, disk.Home{ID: v.ID, Dir: stage.Dir})
}

// ListTemplates returns the templates, the last used first, with the names of the VMs whose
// disks lie on each.
func (m *Manager) ListTemplates(ctx context.Context) ([]template.Template, map[string][]string, error) {
	all, users, err := m.savedMachines(ctx)
	return slices.DeleteFunc(all, func(t template.Template) bool { return t.Snapshot }), users, err
}

// savedMachines returns templates and snapshots, with whose disks lie on each: names of VMs and,
// after the word, of snapshots.
func (m *Manager) savedMachines(ctx context.Context) ([]template.Template, map[string][]string, error) {
	all, err := m.Templates.List()
	if err != nil {
		return nil, nil, err
	}
	vms, err := m.Store.List(ctx)
	users := map[string][]string{}
	for _, v := range vms {
		for _, on := range m.needs(v) {
			users[on] = append(users[on], v.Name)
		}
	}
	for _, t := range all {
		below := m.Templates.Below(t.Disk)
		for _, on := range all {
			if on.Name != t.Name && (t.Damaged != "" || slices.Contains(below, on.Name)) { // it may lie on any
				users[on.Name] = append(users[on.Name], "snapshot "+t.Name)
			}
		}
	}
	return all, users, err
}

// needs returns the names of the templates and snapshots without which v could not go on from where
// it is to, or read its disk.
func (m *Manager) needs(v VM) []string {
	on := m.Templates.Below(v.Base)
	if v.Template != "" && !slices.Contains(on, v.Template) { // a whole disk, made of that one's
		on = append(on, v.Template)
	}
	return on
}

// RemoveTemplate removes the template of that name. errs.Conflict if the disks of VMs lie on it.
func (m *Manager) RemoveTemplate(ctx context.Context, name string) error {
	return m.withoutUsers(ctx, func(all []template.Template, users map[string][]string) error {
		names, err := m.Templates.Names()
		if err != nil {
			return err
		}
		if !slices.Contains(names, name) || slices.ContainsFunc(all, func(t template.Template) bool { return t.Snapshot && t.Name == name }) {
			return errs.New(errs.NotFound, "there is no template %s", name).Try("banger template ls lists those there are")
		}
		if by := users[name]; len(by) > 0 {
			return errs.New(errs.Conflict, "template %s is in use by %s", name, sentenceList(by)).
				Try("remove what lies on it first: banger rm, banger snapshot rm")
		}
		return m.Templates.Remove(name)
	})
}

// withoutUsers does something while no VM can come to lie on a template or a snapshot.
func (m *Manager) withoutUsers(ctx context.Context, do func(all []template.Template, users map[string][]string) error) error {
	m.artefacts.Lock()
	defer m.artefacts.Unlock()
	all, users, err := m.savedMachines(ctx)
	if err != nil {
		return err
	}
	return do(all, users)
}

// EvictTemplates removes the templates that no VM lies on and that were used longest ago, until
// the rest is within the budget, and all that nothing can go on from. It spares the one named.
func (m *Manager) EvictTemplates(ctx context.Context, spare string) error {
	_, err := m.PruneTemplates(ctx, m.TemplateBytes, spare)
	return err
}

// PruneTemplates is EvictTemplates for a budget in bytes; it returns what it removed.
func (m *Manager) PruneTemplates(ctx context.Context, budget int64, spare string) (gone []template.Template, err error) {
	names, err := m.Templates.Names() // first: one that is committed by now is not damaged
	if err != nil {
		return nil, err
	}
	err = m.withoutUsers(ctx, func(all []template.Template, users map[string][]string) error {
		var taken int64
		for _, t := range all {
			names = slices.DeleteFunc(names, func(n string) bool { return n == t.Name })
			if t.Snapshot && !t.Retired() {
				continue
			}
			bytes, err := t.Allocated()
			if err != nil {
				return err
			}
			over := taken+bytes > budget && t.Name != spare
			if len(users[t.Name]) == 0 && (over || t.Retired()) {
				if err := m.Templates.Remove(t.Name); err != nil {
					return err
				}
				gone = append(gone, t)
				continue
			}
			taken += bytes
		}
		for _, damaged := range names { // nobody can tell what it is
			if len(users[damaged]) == 0 {
				if err := m.Templates.Remove(damaged); err != nil {
					return err
				}
				gone = append(gone, template.Template{Name: damaged})
			}
		}
		return nil
	})
	return gone, err
}

// DropTemplates ends the making of templates of an image or a kernel that is to be removed, and
// removes those that are there and that no VM lies on; VMs of the pool go too.
func (m *Manager) DropTemplates(ctx context.Context, uses func(base disk.Base, kernel string) bool) error {
	if err := m.dropFromPool(ctx, uses); err != nil {
		return err
	}
	ending := m.making.that(func(x *making) bool { return uses(x.base, x.kernel) })
	for _, x := range ending { // all at once, or one that waits would begin
		x.cancel()
	}
	for _, x := range ending {
		select {
		case <-x.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return m.withoutUsers(ctx, func(all []template.Template, users map[string][]string) (err error) {
		of := slices.DeleteFunc(all, func(t template.Template) bool {
			return !uses(t.Disk, t.Kernel) && !uses(t.From, t.Kernel) && t.Damaged == ""
		})
		for _, t := range of {
			if t.Snapshot && !t.Retired() {
				return errs.New(errs.Conflict, "it is in use by snapshot %s", t.Name).Try("banger snapshot rm %s", t.Name)
			}
		}
		for _, t := range of {
			if len(users[t.Name]) == 0 {
				err = errors.Join(err, m.Templates.Remove(t.Name))
			}
		}
		return err
	})
}

// strayStages returns the stages of templates that nobody is making.
func (m *Manager) strayStages() ([]string, error) {
	all, err := m.Templates.Leftovers()
	return slices.DeleteFunc(all, func(dir string) bool {
		return len(m.making.that(func(x *making) bool { return x.dir == dir })) > 0
	}), err
}

// clearStages removes the stages of an earlier daemon, and has nothing go on from what it kept for
// copies that it was about to make.
func (m *Manager) clearStages() error {
	stages, err := m.strayStages()
	for _, dir := range stages {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	all, listed := m.Templates.List()
	for _, t := range all {
		if t.Fleeting {
			err = errors.Join(err, m.Templates.Retire(t))
		}
	}
	return errors.Join(err, listed)
}

// newBootID returns a random UUID, as the kernel makes one for each boot.
func newBootID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
