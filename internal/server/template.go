package server

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/op"
	"banger/internal/template"
)

func (s *Server) templateRoutes(a huma.API) {
	huma.Register(a, route("GET", "/v1/templates", "list-templates", "List the machines that VMs can start warm from"),
		func(ctx context.Context, _ *none) (*reply[[]api.Template], error) {
			all, users, err := s.VMs.ListTemplates(ctx)
			if err != nil {
				return nil, toAPI(err)
			}
			return &reply[[]api.Template]{showTemplates(all, users)}, nil
		})
	huma.Register(a, route("POST", "/v1/templates", "build-template", "Make the template for VMs like this"),
		func(_ context.Context, in *struct{ Body api.CreateVM }) (*accepted, error) {
			return s.start("build template", func(ctx context.Context, o *op.Operation) error {
				_, err := s.VMs.MakeTemplate(ctx, o, request(in.Body))
				return err
			}), nil
		})
	huma.Register(a, route("DELETE", "/v1/templates/{name}", "remove-template", "Remove a template that no VM's disk lies on"),
		func(ctx context.Context, in *ByName) (*none, error) {
			return nil, toAPI(s.VMs.RemoveTemplate(ctx, in.Name))
		})
	huma.Register(a, route("POST", "/v1/templates/prune", "prune-templates", "Remove templates that no VM's disk lies on"),
		func(ctx context.Context, in *struct {
			KeepBytes int64 `query:"keep_bytes" minimum:"0" doc:"What the rest may take; the last used ones are kept"`
		}) (*reply[[]api.Template], error) {
			gone, err := s.VMs.PruneTemplates(ctx, in.KeepBytes, "")
			if err != nil {
				return nil, toAPI(err)
			}
			return &reply[[]api.Template]{showTemplates(gone, nil)}, nil
		})
}

func (s *Server) poolRoutes(a huma.API) {
	huma.Register(a, route("GET", "/v1/pool", "list-pool", "List the images that VMs are kept ready of"),
		func(context.Context, *none) (*reply[[]api.PoolImage], error) {
			out := []api.PoolImage{}
			for _, p := range s.VMs.PoolImages() {
				out = append(out, api.PoolImage(p))
			}
			return &reply[[]api.PoolImage]{out}, nil
		})
}

func showTemplates(all []template.Template, users map[string][]string) []api.Template {
	out := make([]api.Template, 0, len(all))
	for _, t := range all {
		shown := api.Template{
			Name: t.Name, Image: t.Image, Kernel: t.Kernel, CPUs: t.CPUs, MemoryBytes: t.MemoryBytes, DiskBytes: t.Disk.Bytes,
			DiskDriver: t.Disk.Driver, Net: t.Net, Accel: t.Accel, Bytes: t.Bytes, Key: t.Key, Retired: t.Retired(), Path: t.Dir,
			CreatedAt: t.CreatedAt, UsedAt: t.UsedAt, UsedBy: append([]string{}, users[t.Name]...),
		}
		if now, err := t.Allocated(); err == nil {
			shown.Bytes = now
		}
		out = append(out, shown)
	}
	return out
}
