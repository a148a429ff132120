package server

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"banger/api"
	"banger/internal/op"
)

// Runtime is the runtime bundle of the daemon.
type Runtime interface {
	Runtime() (api.Runtime, error)
	BuildRuntime(ctx context.Context, o *op.Operation, req api.BuildRuntime) error
	FetchRuntime(ctx context.Context, o *op.Operation, req api.FetchRuntime) error
	InstallRuntime(ctx context.Context, o *op.Operation, req api.InstallRuntime) error
	RollBackRuntime(ctx context.Context, o *op.Operation) error
	VerifyRuntime(ctx context.Context, yield func(api.Verdict) bool) error
	PackRuntime(ctx context.Context, only []string, w io.Writer) error
}

func (s *Server) runtimeRoutes(a huma.API) {
	huma.Register(a, route("GET", "/v1/runtime", "get-runtime", "Tell where the runtime bundle is"),
		func(context.Context, *none) (*reply[api.Runtime], error) {
			r, err := s.Runtime.Runtime()
			return &reply[api.Runtime]{r}, toAPI(err)
		})
	huma.Register(a, route("POST", "/v1/runtime/build", "build-runtime", "Make what the runtime bundle lacks"),
		func(_ context.Context, in *struct{ Body api.BuildRuntime }) (*accepted, error) {
			return s.start("build runtime", func(ctx context.Context, o *op.Operation) error {
				return s.Runtime.BuildRuntime(ctx, o, in.Body)
			}), nil
		})
	huma.Register(a, route("POST", "/v1/runtime/fetch", "fetch-runtime", "Put a packed bundle in the place of the one there is"),
		func(_ context.Context, in *struct{ Body api.FetchRuntime }) (*accepted, error) {
			return s.start("fetch runtime", func(ctx context.Context, o *op.Operation) error {
				return s.Runtime.FetchRuntime(ctx, o, in.Body)
			}), nil
		})
	huma.Register(a, route("POST", "/v1/runtime/install", "install-runtime", "Put a copy of a bundle in the place of the one there is"),
		func(_ context.Context, in *struct{ Body api.InstallRuntime }) (*accepted, error) {
			return s.start("install runtime", func(ctx context.Context, o *op.Operation) error {
				return s.Runtime.InstallRuntime(ctx, o, in.Body)
			}), nil
		})
	huma.Register(a, route("POST", "/v1/runtime/rollback", "roll-back-runtime", "Put the previous bundle in the place of the one there is"),
		func(context.Context, *none) (*accepted, error) {
			return s.start("roll back runtime", func(ctx context.Context, o *op.Operation) error {
				return s.Runtime.RollBackRuntime(ctx, o)
			}), nil
		})
	verify := route("GET", "/v1/runtime/verify", "verify-runtime", "Verify every file of the runtime bundle: one JSON verdict a line, as each is reached")
	huma.Register(a, verify, func(context.Context, *none) (*huma.StreamResponse, error) {
		if _, err := s.Runtime.Runtime(); err != nil {
			return nil, toAPI(err)
		}
		return &huma.StreamResponse{Body: func(c huma.Context) {
			c.SetHeader("Content-Type", "application/x-ndjson")
			lines := newLines(c)
			if err := s.Runtime.VerifyRuntime(c.Context(), func(v api.Verdict) bool { return lines.write(v) == nil }); err != nil {
				e := wire(err)
				_ = lines.write(api.Verdict{What: "bundle", Problem: e.Message, Hint: e.Hint}) // the client may be gone
			}
		}}, nil
	})
	archive := route("GET", "/v1/runtime/archive", "pack-runtime", "The runtime bundle as a tar.zst; an error met on the way comes in the trailer "+api.ErrorTrailer)
	huma.Register(a, archive, func(_ context.Context, in *struct {
		Only []string `query:"only,explode" doc:"Artefacts to pack, by name; all that a build makes unasked if empty"`
	}) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(c huma.Context) {
			c.SetHeader("Content-Type", "application/zstd")
			c.SetHeader("Trailer", api.ErrorTrailer)
			_, w := humago.Unwrap(c)
			if err := s.Runtime.PackRuntime(c.Context(), in.Only, w); err != nil {
				trail(w, err)
			}
		}}, nil
	})
}

// trail tells of an error after the beginning of an answer.
func trail(w http.ResponseWriter, err error) {
	if b, merr := json.Marshal(wire(err)); merr == nil {
		w.Header().Set(api.ErrorTrailer, string(b))
	}
}
