package server

import (
	"cmp"
	"context"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/errs"
	"banger/internal/hypervisor"
	"banger/internal/op"
	"banger/internal/vm"
)

// ByRef is exported because huma looks into exported embedded structs only.
type ByRef struct {
	Ref string `path:"ref" doc:"A name, an id, or a unique prefix of either"`
}

func (s *Server) vmRoutes(a huma.API) {
	huma.Register(a, route("GET", "/v1/vms", "list-vms", "List VMs"),
		func(ctx context.Context, in *struct {
			Up bool `query:"up" doc:"Leave out those that are stopped, or kept ready for others"`
		}) (*reply[[]api.VM], error) {
			vms, err := s.VMs.List(ctx)
			if err != nil {
				return nil, toAPI(err)
			}
			out := make([]api.VM, 0, len(vms))
			for _, v := range vms {
				if !in.Up || v.State != vm.Stopped && !v.Spec.Pooled {
					out = append(out, s.show(v))
				}
			}
			return &reply[[]api.VM]{out}, nil
		})
	huma.Register(a, route("GET", "/v1/vms/{ref}", "get-vm", "Inspect a VM"),
		func(ctx context.Context, in *ByRef) (*reply[api.VM], error) {
			v, err := s.VMs.Find(ctx, in.Ref)
			if err != nil {
				return nil, toAPI(err)
			}
			return &reply[api.VM]{s.showConfined(v)}, nil
		})
	huma.Register(a, route("POST", "/v1/vms", "create-vm", "Create a VM"),
		func(_ context.Context, in *struct{ Body api.CreateVM }) (*accepted, error) {
			return s.start("create", func(ctx context.Context, o *op.Operation) error {
				_, err := s.VMs.Create(ctx, o, request(in.Body))
				return err
			}), nil
		})
	huma.Register(a, route("POST", "/v1/vms/{ref}/start", "start-vm", "Start a stopped VM"),
		func(ctx context.Context, in *struct {
			ByRef
			Body api.StartVM
		}) (*accepted, error) {
			return s.startOn(ctx, "start", in.Ref, func(ctx context.Context, o *op.Operation, id string) error {
				_, err := s.VMs.Start(ctx, o, id, vm.Wait(in.Body.Wait), vm.Boot(in.Body.Boot))
				return err
			})
		})
	huma.Register(a, route("POST", "/v1/vms/{ref}/stop", "stop-vm", "Stop a running VM"),
		func(ctx context.Context, in *struct {
			ByRef
			Body api.StopVM
		}) (*accepted, error) {
			limit, err := stopLimit(in.Body.TimeoutSeconds)
			if err != nil {
				return nil, err
			}
			return s.startOn(ctx, "stop", in.Ref, func(ctx context.Context, o *op.Operation, id string) error {
				_, err := s.VMs.Stop(ctx, o, id, limit)
				return err
			})
		})
	huma.Register(a, route("POST", "/v1/vms/{ref}/restart", "restart-vm", "Stop a VM if it runs, and start it"),
		func(ctx context.Context, in *struct {
			ByRef
			Body api.RestartVM
		}) (*accepted, error) {
			limit, err := stopLimit(in.Body.TimeoutSeconds)
			if err != nil {
				return nil, err
			}
			return s.startOn(ctx, "restart", in.Ref, func(ctx context.Context, o *op.Operation, id string) error {
				_, err := s.VMs.Restart(ctx, o, id, limit, vm.Wait(in.Body.Wait))
				return err
			})
		})
	huma.Register(a, route("POST", "/v1/vms/{ref}/pause", "pause-vm", "Halt a running VM's CPUs"),
		func(ctx context.Context, in *ByRef) (*accepted, error) {
			return s.startOn(ctx, "pause", in.Ref, func(ctx context.Context, _ *op.Operation, id string) error {
				_, err := s.VMs.Pause(ctx, id)
				return err
			})
		})
	huma.Register(a, route("POST", "/v1/vms/{ref}/suspend", "suspend-vm", "Keep a running VM's machine in files, and end it"),
		func(ctx context.Context, in *ByRef) (*accepted, error) {
			return s.startOn(ctx, "suspend", in.Ref, func(ctx context.Context, o *op.Operation, id string) error {
				_, err := s.VMs.Suspend(ctx, o, id)
				return err
			})
		})
	huma.Register(a, route("POST", "/v1/vms/{ref}/resume", "resume-vm", "Let a paused or suspended VM go on"),
		func(ctx context.Context, in *ByRef) (*accepted, error) {
			return s.startOn(ctx, "resume", in.Ref, func(ctx context.Context, o *op.Operation, id string) error {
				_, err := s.VMs.Resume(ctx, o, id)
				return err
			})
		})
	huma.Register(a, route("DELETE", "/v1/vms/{ref}", "remove-vm", "Remove a VM with its disk"),
		func(ctx context.Context, in *struct {
			ByRef
			Force bool `query:"force" doc:"Also if it runs"`
		}) (*accepted, error) {
			return s.startOn(ctx, "remove", in.Ref, func(ctx context.Context, _ *op.Operation, id string) error {
				return s.VMs.Delete(ctx, id, in.Force)
			})
		})
}

// stopLimit is how long a guest may take to power off.
func stopLimit(seconds *int) (time.Duration, error) {
	switch {
	case seconds == nil:
		return vm.StopLimit, nil
	case *seconds < 0 || *seconds > 24*60*60:
		return 0, toAPI(errs.New(errs.Invalid, "%d seconds is no time to wait", *seconds).Try("choose 0 to 86400"))
	}
	return time.Duration(*seconds) * time.Second, nil
}

// startOn starts an operation on the VM that ref means.
func (s *Server) startOn(ctx context.Context, kind, ref string, run func(context.Context, *op.Operation, string) error) (*accepted, error) {
	v, err := s.VMs.Find(ctx, ref)
	if err != nil {
		return nil, toAPI(err)
	}
	out := s.start(kind, func(ctx context.Context, o *op.Operation) error {
		o.About(v.ID)
		return run(ctx, o, v.ID)
	})
	out.Body.VM, out.Body.Name = v.ID, v.Name
	return out, nil
}

func request(c api.CreateVM) vm.Request {
	var limit hypervisor.Limit
	if l := c.DiskLimit; l != nil {
		limit = hypervisor.Limit{Bytes: l.BytesPerSecond, Requests: l.RequestsPerSecond}
	}
	return vm.Request{
		Name: c.Name, Image: c.Image, Kernel: c.Kernel, CPUs: c.CPUs, MemoryBytes: c.MemoryBytes, DiskBytes: c.DiskBytes,
		DiskDriver: c.DiskDriver, DiskLimit: limit, HugePages: c.HugePages,
		Net: c.Net, Isolated: c.Isolated, HostAccess: c.HostAccess, Forwards: c.Forwards,
		Backend: c.Backend, Accel: c.Accel, Nested: c.Nested, Unjailed: c.Unjailed, Env: c.Env, AutoRemove: c.AutoRemove, Autostart: c.Autostart, Lease: c.Lease, Start: c.Start, Boot: vm.Boot(c.Boot), Wait: vm.Wait(c.Wait), Snapshot: c.From,
	}
}

func (s *Server) show(v vm.VM) api.VM {
	out := api.VM{
		ID: v.ID, Name: v.Name, State: api.State(v.State), Image: v.Spec.Image, Kernel: v.Spec.Kernel,
		Backend: string(cmp.Or(v.Spec.Backend, hypervisor.QEMU)), Accel: v.Spec.Accel, Nested: v.Spec.Nested, CPUs: v.Spec.CPUs, MemoryBytes: v.Spec.MemoryBytes, HugePages: v.Spec.HugePages,
		Disk:       s.showDisk(v),
		Network:    s.showNetwork(v),
		AutoRemove: v.Spec.AutoRemove || v.Spec.Lease != "", Pooled: v.Spec.Pooled, Autostart: v.Spec.Autostart,
		CreatedAt: v.CreatedAt, StartedAt: instant(v.StartedAt), StoppedAt: instant(v.StoppedAt),
		Error: v.Reason, Directory: s.VMs.Directory(v),
	}
	if v.StartTook > 0 {
		out.Start = &api.Start{Kind: cmp.Or(string(v.StartKind), string(vm.Cold)), MS: v.StartTook.Milliseconds()}
	}
	if v.Machine != nil && v.State.HasMachine() {
		out.PID, out.Accel = v.Machine.Process.PID, string(v.Machine.Accel)
	}
	if out.Accel == string(hypervisor.TCG) {
		out.Notes = append(out.Notes, "its instructions are translated in software (TCG): that is slow, and no security boundary between it and this host")
	}
	return out
}

func (s *Server) showDisk(v vm.VM) api.Disk {
	u := s.VMs.DiskUsage(v)
	out := api.Disk{Driver: v.Disk.Driver, VirtualBytes: v.Disk.VirtualBytes, AllocatedBytes: u.AllocatedBytes,
		DiskLimit: api.DiskLimit{BytesPerSecond: v.Spec.DiskLimit.Bytes, RequestsPerSecond: v.Spec.DiskLimit.Requests}}
	if u.ChangedBytes >= 0 {
		out.ChangedBytes = &u.ChangedBytes
	}
	return out
}

func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
