package server

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
)

func (s *Server) diskRoutes(a huma.API) {
	huma.Register(a, route("GET", "/v1/disk-usage", "disk-usage", "What VMs, images and kernels take of the host's disk"),
		func(ctx context.Context, _ *none) (*reply[[]api.DiskUse], error) {
			uses, err := s.Library.DiskUses(ctx)
			if err != nil {
				return nil, toAPI(err)
			}
			return &reply[[]api.DiskUse]{uses}, nil
		})
	huma.Register(a, route("POST", "/v1/vms/{ref}/trim", "trim-vm", "Give back what a running VM's filesystem does not need"),
		func(ctx context.Context, in *ByRef) (*reply[api.Trimmed], error) {
			t, err := s.VMs.Trim(ctx, in.Ref)
			if err != nil {
				return nil, toAPI(err)
			}
			return &reply[api.Trimmed]{api.Trimmed{GuestBytes: t.Guest, HostBytes: t.Host}}, nil
		})
}
