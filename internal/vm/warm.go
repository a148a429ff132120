package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/guest/proto"
	"banger/internal/hypervisor"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/op"
	"banger/internal/template"
)

// Boot says how a guest comes up.
type Boot string

const (
	Cold Boot = "cold" // from its kernel's first instruction
	Warm Boot = "warm" // from a template: a machine that was saved when it had booted
)

// check refuses what is none; empty asks for warm where there is a template, and cold elsewhere.
func (b Boot) check() error {
	switch b {
	case "", Cold, Warm:
		return nil
	}
	return errs.New(errs.Invalid, "a VM can't start %q", string(b)).Try("use cold or warm")
}

func kindOf(from *origin) Boot {
	if from != nil {
		return Warm
	}
	return Cold
}

// warmLimit bounds the time that a guest which goes on from a template may take to answer:
// a third of a second on an idle host, and no reason to wait as long as for a boot.
const warmLimit = 30 * time.Second

func baseOf(img image.Image) disk.Base {
	return disk.Base{Path: img.Path, Bytes: img.VirtualBytes, SHA256: img.SHA256}
}

// formats changes when machines of an earlier banger can't be gone on from.
const formats = "2"

// templateKey is a digest of all that v must have in common with what it goes on from: that of
// its machine, which is returned too, and the image and size of its disk.
func (m *Manager) templateKey(ctx context.Context, v VM, img image.Image, k kernel.Kernel) (key, machine string, err error) {
	if machine, err = m.machineKey(ctx, v, k); err != nil {
		return "", "", err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s %s\n%d %s", machine, img.SHA256, img.Path, v.Spec.DiskBytes, v.Spec.DiskDriver)
	return hex.EncodeToString(sum.Sum(nil)), machine, nil
}

// machineKey is a digest of what v's machine would be if it were launched now, but for its disk:
// its VMM, CPU and devices, and its kernel.
func (m *Manager) machineKey(ctx context.Context, v VM, k kernel.Kernel) (string, error) {
	spec, err := m.specNow(ctx, v, k)
	if err != nil {
		return "", err
	}
	hardware, err := m.hardwareOf(spec, k)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s %s", hardware, k.SHA256, filepath.Base(spec.Initramfs))
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// specNow describes the machine that v would have if it were launched now, but for its root disk.
func (m *Manager) specNow(ctx context.Context, v VM, k kernel.Kernel) (hypervisor.MachineSpec, error) {
	initramfs, err := m.Kernels.Initramfs(ctx, k)
	if err != nil {
		return hypervisor.MachineSpec{}, err
	}
	backend, accel, err := m.Hypervisor.Choose(ctx, v.Spec, k.Vmlinux)
	if err != nil {
		return hypervisor.MachineSpec{}, err
	}
	spec := m.describe(v, k, initramfs, backend, accel)
	switch v.Spec.Net {
	case NetUser:
		spec.NICs = []hypervisor.NIC{{Mode: hypervisor.NICUser}}
	case NetBridge:
		spec.NICs = []hypervisor.NIC{{Mode: hypervisor.NICTAP}}
	}
	return spec, nil
}

// hardwareOf is a digest of what a machine that boots this kernel must have in common with one that
// goes on from it: all but what is in its memory by then.
func (m *Manager) hardwareOf(spec hypervisor.MachineSpec, k kernel.Kernel) (string, error) {
	kin, err := m.Hypervisor.Kin(spec)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s", formats, kin)
	for _, d := range spec.Disks {
		if !d.ReadOnly { // the root disk, which goes along
			continue
		}
		if info, err := os.Stat(d.Path); err == nil { // without it no machine starts
			fmt.Fprintf(sum, "\n%d", info.Size())
		}
	}
	if k.ModulesImage != "" { // one of those disks, and for this kernel only
		fmt.Fprintf(sum, "\n%s", k.SHA256)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// templateOf finds the template for a VM of this spec. errs.NotFound if there is none: then only
// its keys are returned.
func (m *Manager) templateOf(ctx context.Context, spec Spec) (template.Template, error) {
	img, err := m.Images.Image(spec.Image)
	if err != nil {
		return template.Template{}, err
	}
	k, err := m.Kernels.Kernel(spec.Kernel)
	if err != nil {
		return template.Template{}, err
	}
	key, machine, err := m.templateKey(ctx, VM{Spec: spec}, img, k)
	if err != nil {
		return template.Template{}, err
	}
	t, err := m.Templates.Find(key)
	t.Key, t.Machine = key, machine
	return t, err
}

// layOnTemplate has v's disk lie on that of a template, if there is one for it, from which its
// guest can then go on. m.artefacts is held.
func (m *Manager) layOnTemplate(ctx context.Context, req Request, v VM, img image.Image, k kernel.Kernel) (VM, error) {
	boot := req.Boot
	if req.From != nil { // nothing will be asked for like it again
		boot = Cold
	}
	if boot == Cold || m.TemplateBytes == 0 {
		if boot == Warm {
			return v, errs.New(errs.Unavailable, "VMs can't start warm here: templates are switched off").Try("set template_budget in the config file")
		}
		return v, nil
	}
	var t template.Template
	key, _, err := m.templateKey(ctx, v, img, k)
	if err == nil {
		t, err = m.Templates.Find(key)
	}
	if err == nil {
		if err = m.Templates.Check(t); err != nil {
			m.distrust(ctx, t, err)
			err = errs.New(errs.NotFound, "the only one there was is damaged").Because(err)
		}
	}
	switch {
	case err == nil:
		v.Base, v.Template, v.Pristine = t.Disk, t.Name, true
		m.used(t)
	case boot == Warm:
		return v, errs.New(errs.Unavailable, "there is no template from which this VM could start warm").Because(err).
			Try("banger template build %s, with the flags given here, makes one", v.Spec.Image)
	case errs.KindOf(err) != errs.NotFound: // or its VMM has no way to save a machine
		m.Log.Debug("look for a template", "vm", v.ID, "err", err)
	}
	return v, nil
}

// used records that a VM goes on from a template, for those that are used least go first.
func (m *Manager) used(t template.Template) {
	if err := m.Templates.Use(t); err != nil {
		m.Log.Warn("record that a template is used", "template", t.Name, "err", err)
	}
}

// distrust has no VM go on from a template any more. Its disk stays for those that lie on it.
func (m *Manager) distrust(ctx context.Context, t template.Template, why error) {
	m.Log.Warn("a template is no good", "template", t.Name, "err", why)
	err := m.Templates.Retire(t)
	if err == nil {
		err = m.Store.Note(context.WithoutCancel(ctx), "template", fmt.Sprintf("template %s is not used any more: %v", t.Name, why))
	}
	if err != nil {
		m.Log.Error("retire a template", "template", t.Name, "err", err)
	}
}

const (
	skewAllowed = 40 * time.Millisecond // of a clone's clock, with what can't be told; 50 are promised
	clockTries  = 5
)

// skew tells how far a guest's clock is behind by what it showed in its answer to a message that
// was sent at begin, and how sure that is: the two messages took so long together.
func skew(begin time.Time, guest int64, took time.Duration) (behind time.Duration, sure bool) {
	behind = begin.Add(took / 2).Sub(time.Unix(0, guest))
	return behind, took/2+behind.Abs() < skewAllowed
}

// setClock sets a clone's clock as well as can be told: on a busy host a message may take longer
// to arrive than the clock may be off, so its answer is timed, and it is sent again.
func setClock(ctx context.Context, g Guest, adjust time.Duration) error {
	for range clockTries {
		var guest proto.Clock
		begin := time.Now()
		if err := g.Call(ctx, proto.MethodClock, proto.Clock{AdjustNanos: int64(adjust)}, &guest); err != nil {
			return err
		}
		var sure bool
		if adjust, sure = skew(begin, guest.UnixNanos, time.Since(begin)); sure {
			return nil
		}
	}
	return nil // as near as this host lets it
}

// notFromThere is what went wrong with a guest that was to go on from what was saved, and may not
// go wrong with one that boots.
type notFromThere struct{ error }

func (e notFromThere) Unwrap() error { return e.error }

func warmFailed(from *origin, err error) error {
	if from == nil {
		return err
	}
	return notFromThere{err}
}

// bootOrFallBack boots v's machine: warm if its guest has never run and its template is good,
// and cold otherwise. The rows of [starting] are there.
func (m *Manager) bootOrFallBack(ctx context.Context, o *op.Operation, v VM, begin time.Time, wait Wait, boot Boot) (VM, error) {
	if !v.Pristine {
		return m.boot(ctx, o, v, begin, wait, nil)
	}
	if v.Spec.Snapshot != "" {
		return m.fromSnapshot(ctx, o, v, begin, wait, boot)
	}
	if boot != Cold {
		t, err := m.fromWhich(ctx, v)
		if err == nil {
			started, err := m.boot(ctx, o, v, begin, wait, fromTemplate(t))
			failed, ofTemplate := errors.AsType[notFromThere](err)
			_, left := errors.AsType[leftBehind](err)
			if err == nil || !ofTemplate || left || ctx.Err() != nil {
				return started, err
			}
			m.distrust(ctx, t, failed.error)
			if boot == Warm {
				return started, err
			}
			// What was undone is to be made again.
			if _, err := m.update(ctx, v.ID, "started again", func(*VM) error { return nil }, starting(v)...); err != nil {
				return v, err
			}
		} else if boot == Warm {
			return v, errs.New(errs.Unavailable, "VM %s can't start warm", v.Name).Because(err).Try("leave --warm out")
		} else {
			m.Log.Info("a VM does not go on from its template", "vm", v.ID, "template", v.Template, "err", err)
		}
	}
	return m.bootAfresh(ctx, o, v, begin, wait)
}

// fromWhich returns the template that the disk of v lies on, if v can go on from it now: since v
// was made, the host may have got another VMM or CPU, or have lost KVM.
func (m *Manager) fromWhich(ctx context.Context, v VM) (template.Template, error) {
	if m.TemplateBytes == 0 && v.Spec.Snapshot == "" {
		return template.Template{}, errors.New("templates are switched off")
	}
	t, err := m.Templates.Get(v.Template)
	switch {
	case errs.KindOf(err) == errs.NotFound:
		return t, err
	case err == nil && t.Retired():
		return t, errors.New("its template is not used any more")
	}
	if err == nil {
		err = m.Templates.Check(t)
	}
	if err != nil {
		if !t.Snapshot {
			m.distrust(ctx, t, err)
		}
		return t, err
	}
	k, err := m.Kernels.Kernel(v.Spec.Kernel)
	if err != nil {
		return t, err
	}
	keyNow := m.machineKey
	if t.Snapshot {
		keyNow = m.hardwareKey
	}
	if machine, err := keyNow(ctx, v, k); err != nil {
		return t, err
	} else if machine != t.Machine {
		return t, errOtherMachine
	}
	return t, nil
}

// bootAfresh boots the machine of a VM cold whose guest was to go on from a template, with a
// disk as the image has it. Where that is gone the template's disk has to do.
func (m *Manager) bootAfresh(ctx context.Context, o *op.Operation, v VM, begin time.Time, wait Wait) (VM, error) {
	v, err := m.leaveTemplate(ctx, o, v)
	if err != nil {
		return v, err
	}
	return m.boot(ctx, o, v, begin, wait, nil)
}

// leaveTemplate has v lie on its image, which can't go before its row tells.
func (m *Manager) leaveTemplate(ctx context.Context, o *op.Operation, v VM) (VM, error) {
	m.artefacts.RLock()
	defer m.artefacts.RUnlock()
	if img, err := m.Images.Image(v.Spec.Image); err == nil {
		if err := m.Disks.Remove(ctx, m.home(v.ID)); err != nil {
			return v, err
		}
		x := v
		x.Base, x.Template, x.Pristine = baseOf(img), "", false
		if x.Disk, err = m.makeDisk(ctx, o, x); err != nil {
			return v, err
		}
		made, err := m.update(ctx, v.ID, "disk made anew", func(y *VM) error {
			y.Base, y.Disk, y.Template, y.Pristine = x.Base, x.Disk, "", false
			return nil
		})
		if err != nil {
			return x, err
		}
		return made, nil
	}
	// Its guest writes to the disk before its row tells that it runs.
	return m.update(ctx, v.ID, "not from its template", func(y *VM) error {
		y.Pristine = false
		return nil
	})
}
