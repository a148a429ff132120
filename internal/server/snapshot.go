package server

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/op"
	"banger/internal/template"
	"banger/internal/vm"
)

func (s *Server) snapshotRoutes(a huma.API) {
	huma.Register(a, route("GET", "/v1/snapshots", "list-snapshots", "List the machines that were kept as they were"),
		func(ctx context.Context, _ *none) (*reply[[]api.Snapshot], error) {
			all, users, err := s.VMs.ListSnapshots(ctx)
			if err != nil {
				return nil, toAPI(err)
			}
			out := make([]api.Snapshot, 0, len(all))
			for _, t := range all {
				out = append(out, showSnapshot(t, users[t.Name]))
			}
			return &reply[[]api.Snapshot]{out}, nil
		})
	huma.Register(a, route("POST", "/v1/vms/{ref}/snapshot", "take-snapshot", "Keep a VM's machine and disk as they are"),
		func(ctx context.Context, in *struct {
			ByRef
			Body api.TakeSnapshot
		}) (*reply[api.Snapshot], error) {
			var t template.Template
			err := s.await(ctx, "snapshot", in.Ref, func(ctx context.Context, o *op.Operation, id string) (err error) {
				t, err = s.VMs.Snapshot(ctx, o, id, in.Body.Name)
				return err
			})
			if err != nil {
				return nil, err
			}
			return &reply[api.Snapshot]{showSnapshot(t, nil)}, nil
		})
	huma.Register(a, route("DELETE", "/v1/snapshots/{name}", "remove-snapshot", "Remove a snapshot that no disk lies on"),
		func(ctx context.Context, in *ByName) (*none, error) {
			return nil, toAPI(s.VMs.RemoveSnapshot(ctx, in.Name))
		})
	huma.Register(a, route("POST", "/v1/vms/{ref}/fork", "fork-vm", "Make live copies of a running VM"),
		func(ctx context.Context, in *struct {
			ByRef
			Body api.ForkVM
		}) (*reply[[]api.VM], error) {
			f := in.Body
			var copies []vm.VM
			err := s.await(ctx, "fork", in.Ref, func(ctx context.Context, o *op.Operation, id string) (err error) {
				copies, err = s.VMs.Fork(ctx, o, id, f.Count, vm.Request{Name: f.Name, Env: f.Env, AutoRemove: f.AutoRemove, Lease: f.Lease})
				return err
			})
			if err != nil {
				return nil, err
			}
			out := make([]api.VM, 0, len(copies))
			for _, v := range copies {
				out = append(out, s.show(v))
			}
			return &reply[[]api.VM]{out}, nil
		})
}

// await does work on the VM that ref means as an operation and returns when that has finished. A
// client that goes cancels it.
func (s *Server) await(ctx context.Context, kind, ref string, run func(context.Context, *op.Operation, string) error) error {
	v, err := s.VMs.Find(ctx, ref)
	if err != nil {
		return toAPI(err)
	}
	o := s.Ops.Start(kind, func(ctx context.Context, o *op.Operation) error { return run(ctx, o, v.ID) })
	defer context.AfterFunc(ctx, o.Cancel)()
	return toAPI(o.Wait(context.WithoutCancel(ctx)))
}

func showSnapshot(t template.Template, users []string) api.Snapshot {
	out := api.Snapshot{
		Name: t.Name, Of: t.Of, Image: t.Image, Kernel: t.Kernel, CPUs: t.CPUs, MemoryBytes: t.MemoryBytes, DiskBytes: t.Disk.Bytes,
		DiskDriver: t.Disk.Driver, Net: t.Net, Accel: t.Accel, Bytes: t.Bytes, Path: t.Dir, CreatedAt: t.CreatedAt, Damaged: t.Damaged, UsedBy: append([]string{}, users...),
	}
	if now, err := t.Allocated(); err == nil {
		out.Bytes = now
	}
	return out
}
