package server

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/op"
)

type ByName struct {
	Name string `path:"name"`
}

func (s *Server) libraryRoutes(a huma.API) {
	s.importRoutes(a)
	huma.Register(a, route("GET", "/v1/images", "list-images", "List images"),
		func(ctx context.Context, _ *none) (*reply[[]api.Image], error) {
			images, err := s.Library.Images(ctx)
			return &reply[[]api.Image]{images}, toAPI(err)
		})
	huma.Register(a, route("GET", "/v1/images/{name}", "get-image", "Inspect an image"),
		func(ctx context.Context, in *ByName) (*reply[api.Image], error) {
			image, err := s.Library.ImageInfo(ctx, in.Name)
			return &reply[api.Image]{image}, toAPI(err)
		})
	huma.Register(a, route("POST", "/v1/images/build", "build-image", "Build an image from a manifest"),
		func(_ context.Context, in *struct{ Body api.BuildImage }) (*accepted, error) {
			return s.start("build image", func(ctx context.Context, o *op.Operation) error {
				return s.Library.BuildImage(ctx, o, in.Body)
			}), nil
		})
	huma.Register(a, route("POST", "/v1/images/{name}/check", "check-image", "Ask the mirror for newer versions of an image's packages"),
		func(ctx context.Context, in *ByName) (*reply[[]api.NewerPackage], error) {
			newer, err := s.Library.CheckImage(ctx, in.Name)
			return &reply[[]api.NewerPackage]{newer}, toAPI(err)
		})
	huma.Register(a, route("POST", "/v1/vms/{ref}/commit", "commit-vm", "Keep the disk of a VM as an image"),
		func(ctx context.Context, in *struct {
			ByRef
			Body api.CommitVM
		}) (*accepted, error) {
			return s.startOn(ctx, "commit", in.Ref, func(ctx context.Context, o *op.Operation, id string) error {
				return s.Library.CommitVM(ctx, o, id, in.Body)
			})
		})
	huma.Register(a, route("POST", "/v1/images/tag", "tag-image", "Let a name mean an image"),
		func(ctx context.Context, in *struct{ Body api.TagImage }) (*none, error) {
			return nil, toAPI(s.Library.TagImage(ctx, in.Body.Image, in.Body.Name))
		})
	huma.Register(a, route("POST", "/v1/images/prune", "prune-images", "Remove the images that no name means and no VM uses"),
		func(ctx context.Context, in *struct {
			All bool `query:"all" doc:"Also what builds and pulls have kept to be quicker the next time"`
			Dry bool `query:"dry" doc:"Only list them"`
		}) (*reply[api.PrunedImages], error) {
			pruned, err := s.Library.PruneImages(ctx, in.All, in.Dry)
			return &reply[api.PrunedImages]{pruned}, toAPI(err)
		})
	huma.Register(a, route("DELETE", "/v1/images/{name}", "remove-image", "Remove a name of an image, and with its last one the image, which no VM may use"),
		func(ctx context.Context, in *ByName) (*none, error) {
			return nil, toAPI(s.Library.RemoveImage(ctx, in.Name))
		})
	huma.Register(a, route("GET", "/v1/kernels", "list-kernels", "List kernels"),
		func(ctx context.Context, _ *none) (*reply[[]api.Kernel], error) {
			kernels, err := s.Library.Kernels(ctx)
			return &reply[[]api.Kernel]{kernels}, toAPI(err)
		})
	huma.Register(a, route("POST", "/v1/kernels", "import-kernel", "Import a kernel file of the host's"),
		func(_ context.Context, in *struct{ Body api.ImportKernel }) (*accepted, error) {
			return s.start("import kernel", func(ctx context.Context, o *op.Operation) error {
				return s.Library.ImportKernel(ctx, o, in.Body)
			}), nil
		})
	huma.Register(a, route("DELETE", "/v1/kernels/{name}", "remove-kernel", "Remove an imported kernel that no VM uses"),
		func(ctx context.Context, in *ByName) (*none, error) {
			return nil, toAPI(s.Library.RemoveKernel(ctx, in.Name))
		})
}
