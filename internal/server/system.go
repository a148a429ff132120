package server

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/op"
	"banger/internal/vm"
)

func (s *Server) systemRoutes(a huma.API) {
	events := route("GET", "/v1/events", "list-events", "What happened to VMs: one JSON transition a line, oldest first")
	huma.Register(a, events, func(_ context.Context, in *struct {
		After  int64 `query:"after" default:"-1" doc:"The number of the event after which to begin; -1 for the last there is now"`
		Follow bool  `query:"follow" doc:"Go on as more happens"`
	}) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(c huma.Context) {
			c.SetHeader("Content-Type", "application/x-ndjson")
			lines := newLines(c)
			lines.flush.Flush() // a follower may have nothing to read for long
			err := s.VMs.Events(c.Context(), in.After, in.Follow, func(e vm.Event) bool { return lines.write(transition(e)) == nil })
			if err != nil {
				s.Log.Error("list events", "err", err)
			}
		}}, nil
	})
	huma.Register(a, route("GET", "/v1/vms/{ref}/stats", "get-stats", "What a running VM takes and does now"),
		func(ctx context.Context, in *ByRef) (*reply[api.Stats], error) {
			st, err := s.VMs.Stats(ctx, in.Ref)
			if err != nil {
				return nil, toAPI(err)
			}
			return &reply[api.Stats]{stats(st)}, nil
		})
	huma.Register(a, route("GET", "/v1/system/census", "census", "Compare what exists on the host for VMs with what should"),
		func(ctx context.Context, _ *none) (*reply[[]api.Finding], error) {
			found, err := s.VMs.Census(ctx)
			if err != nil {
				return nil, toAPI(err)
			}
			return &reply[[]api.Finding]{findings(found)}, nil
		})
	huma.Register(a, route("POST", "/v1/system/sweep", "sweep", "Remove what the census finds that is proven banger's and that nothing explains"),
		func(ctx context.Context, _ *none) (*reply[[]api.Finding], error) {
			var gone []vm.Finding
			o := s.Ops.Start("sweep", func(ctx context.Context, o *op.Operation) (err error) {
				gone, err = s.VMs.Sweep(ctx, o)
				return err
			})
			if err := o.Wait(ctx); err != nil {
				return nil, toAPI(err)
			}
			return &reply[[]api.Finding]{findings(gone)}, nil
		})
	verify := route("GET", "/v1/system/verify", "verify", "Verify the files that VMs depend on: one JSON verdict a line, as each is reached")
	huma.Register(a, verify, func(context.Context, *none) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(c huma.Context) {
			c.SetHeader("Content-Type", "application/x-ndjson")
			lines := newLines(c)
			s.Library.Verify(c.Context(), func(v api.Verdict) bool { return lines.write(v) == nil })
		}}, nil
	})
	huma.Register(a, route("POST", "/v1/prune", "prune", "Remove files that nothing needs any more, and list them"),
		func(ctx context.Context, in *struct {
			Dry bool `query:"dry" doc:"Only list them"`
		}) (*reply[[]api.File], error) {
			files, err := s.Library.Prune(ctx, in.Dry)
			return &reply[[]api.File]{files}, toAPI(err)
		})
}

func transition(e vm.Event) api.Transition {
	return api.Transition{Seq: e.Seq, At: e.At, VM: e.VM, Name: e.Name, From: api.State(e.From), To: api.State(e.To), Cause: e.Cause, Reason: e.Reason}
}

func findings(found []vm.Finding) []api.Finding {
	out := make([]api.Finding, 0, len(found))
	for _, f := range found {
		out = append(out, api.Finding{Kind: f.Kind, Name: f.Name, VM: f.VM, Problem: f.Problem})
	}
	return out
}

func stats(s vm.Stats) api.Stats {
	out := api.Stats{
		VM: s.VM.ID, Name: s.VM.Name, At: s.At, CPUs: s.VM.Spec.CPUs, CPUSeconds: s.Host.CPU.Seconds(), PSSBytes: s.Host.PSSBytes,
		DiskBytes: s.Disk, ReadBytes: s.Host.ReadBytes, WriteBytes: s.Host.WriteBytes,
	}
	if g := s.Guest; g != nil {
		out.Guest = &api.GuestStats{
			CPUSeconds: g.CPUSeconds, Load1: g.Load1, MemoryTotalBytes: g.MemoryTotalBytes, MemoryAvailableBytes: g.MemoryAvailableBytes,
			RootTotalBytes: g.RootTotalBytes, RootFreeBytes: g.RootFreeBytes, RxBytes: g.RxBytes, TxBytes: g.TxBytes,
		}
	}
	if b := s.Balloon; b != nil {
		out.Balloon = &api.BalloonStats{
			HeldBytes: b.HeldBytes, TotalBytes: b.TotalBytes, FreeBytes: b.FreeBytes, AvailableBytes: b.AvailableBytes, CachedBytes: b.CachedBytes,
			SwappedInBytes: b.SwappedIn, SwappedOutBytes: b.SwappedOut, MajorFaults: b.MajorFaults, MinorFaults: b.MinorFaults,
		}
	}
	if d := s.Devices; d != nil {
		out.Devices = &api.DeviceStats{
			DiskReadBytes: d.DiskReadBytes, DiskWriteBytes: d.DiskWriteBytes, DiskThrottled: d.DiskThrottled, DiskFailures: d.DiskFailures,
			NetRxBytes: d.NetReadBytes, NetTxBytes: d.NetWriteBytes, NetFailures: d.NetFailures,
			ConsoleDroppedBytes: d.ConsoleDropped, ForbiddenCalls: d.ForbiddenCalls,
		}
	}
	return out
}
