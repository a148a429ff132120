package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"banger/internal/errs"
	"banger/internal/guest/proto"
	"banger/internal/guest/session"
	"banger/internal/image"
	"banger/internal/op"
	"banger/internal/unixsock"
	"banger/internal/vm"
)

// workshop is where images are made by what runs in them: in VMs that last as long as the
// work.
type workshop struct {
	vms *vm.Manager
	ops *op.Registry
}

// workshopMemory is the memory of such a VM, in bytes: dpkg and compilers want more than
// a VM has by default.
const workshopMemory = 1 << 30

// Run implements image.Workshop, as an operation of its own: it may have more callers than
// the one who began it.
func (w workshop) Run(ctx context.Context, base image.Image, commands []string, path string, progress image.Progress) error {
	o := w.ops.Start("run commands", func(ctx context.Context, o *op.Operation) error { return w.run(ctx, o, base, commands, path) })
	defer context.AfterFunc(ctx, o.Cancel)()
	err := errors.New("the operation never ended") // Follow ends with the last event
	o.Follow(context.WithoutCancel(ctx), func(e op.Event) bool {
		switch {
		case e.Finished:
			err = e.Err
		case e.Stage != "":
			progress("commands: "+e.Stage, e.Done, e.Total)
		}
		return true
	})
	return err
}

func (w workshop) run(ctx context.Context, o *op.Operation, base image.Image, commands []string, path string) (err error) {
	lease := w.vms.OpenLease()
	defer func() { err = errors.Join(err, w.vms.EndLease(context.WithoutCancel(ctx), lease)) }()
	before, err := w.vms.Store.LastEvent(ctx)
	if err != nil {
		return err
	}
	memory := int64(workshopMemory)
	v, err := w.vms.Create(ctx, o, vm.Request{From: &base, MemoryBytes: &memory, Lease: lease, Start: true})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go w.watch(ctx, v.ID, before, stop)
	defer func() {
		if full, ok := errors.AsType[*errs.Error](context.Cause(ctx)); ok && err != nil {
			err = full
		}
	}()
	for i, c := range commands {
		o.Stage(fmt.Sprintf("%d of %d: %s", i+1, len(commands), firstLine(c)), 0, 0)
		if err := w.exec(ctx, v, c); err != nil {
			return err
		}
	}
	if _, err := w.vms.Trim(ctx, v.ID); err != nil && ctx.Err() == nil {
		o.Warn("can't trim the disk first: " + err.Error()) // it takes more room than it need
	}
	_, err = w.vms.Flatten(ctx, o, v.ID, path, true)
	return err
}

// watch ends the work when its VM is paused, as one is that the host has no more room for: it would
// wait for ever for someone to resume it.
func (w workshop) watch(ctx context.Context, id string, after int64, stop context.CancelCauseFunc) {
	w.vms.Events(ctx, after, true, func(e vm.Event) bool { // it fails as the work itself will
		if e.VM != id || e.To != vm.Paused || e.Reason == "" { // or someone has paused it
			return true
		}
		stop(errs.New(errs.Unavailable, "the commands can't go on: the host's disk is full").Try("make room for the state directory: banger disk usage"))
		return false
	})
}

// exec has the guest run a command. errs.Invalid if it fails, with what it said last.
func (w workshop) exec(ctx context.Context, v vm.VM, command string) error {
	g, err := w.vms.Guest(ctx, v.ID)
	if err != nil {
		return err
	}
	open := func(_ context.Context, h proto.Header) (session.Stream, error) {
		ours, theirs, err := unixsock.Pair()
		if err != nil {
			return nil, err
		}
		go func() {
			defer theirs.Close()
			if err := g.Join(context.Background(), h, theirs); err != nil {
				proto.WriteFrame(theirs, proto.Reply{Error: &proto.Error{Code: string(errs.KindOf(err)), Message: err.Error()}})
			}
		}()
		return ours, nil
	}
	said := &lastWords{}
	exit, err := session.Exec(ctx, open, proto.Exec{Argv: []string{"/bin/sh", "-c", command}}, session.IO{Stdout: said, Stderr: said})
	switch {
	case err != nil:
		return err
	case exit.Code != 0:
		return errs.New(errs.Invalid, "the command %q ended with status %d", firstLine(command), exit.Code).
			Because(errors.New(strings.TrimSpace(exit.Message + said.String()))).Try("correct it in the manifest; what was built before it is kept")
	}
	return nil
}

// lastWords keeps the end of what is written to it.
type lastWords struct {
	mu   sync.Mutex // two streams write
	text []byte
}

// lastWordsBytes is how much of what a command said an error repeats.
const lastWordsBytes = 2 << 10

func (l *lastWords) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	l.text = l.text[max(0, len(l.text)-lastWordsBytes):]
	return len(p), nil
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.ToValidUTF8(string(l.text), "")
}

// firstLine is enough of a command to know it by.
func firstLine(command string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(command), "\n")
	return line
}
