package server

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"banger/api"
	"banger/internal/errs"
	"banger/internal/op"
)

func (s *Server) importRoutes(a huma.API) {
	huma.Register(a, route("POST", "/v1/images/import", "import-image", "Make an image of a root filesystem of the host's"),
		func(_ context.Context, in *struct{ Body api.ImportImage }) (*accepted, error) {
			return s.start("import image", func(ctx context.Context, o *op.Operation) error {
				return s.Library.ImportImage(ctx, o, in.Body, nil)
			}), nil
		})
	huma.Register(a, route("POST", "/v1/images/pull", "pull-image", "Make an image of a container image in a registry"),
		func(_ context.Context, in *struct{ Body api.PullImage }) (*accepted, error) {
			return s.start("pull image", func(ctx context.Context, o *op.Operation) error {
				return s.Library.PullImage(ctx, o, in.Body)
			}), nil
		})
	stream := route("POST", "/v1/images/import-stream", "import-image-stream",
		"Make an image of the root filesystem in the body, which goes on after the answer, an operation, has come")
	huma.Register(a, stream, func(_ context.Context, in *struct {
		Request string `query:"request" doc:"What import-image takes, as JSON"`
	}) (*huma.StreamResponse, error) {
		var req api.ImportImage
		if err := json.Unmarshal([]byte(in.Request), &req); err != nil {
			return nil, toAPI(errs.New(errs.Invalid, "the request is damaged").Because(err))
		}
		return &huma.StreamResponse{Body: func(c huma.Context) { s.importStream(c, req) }}, nil
	})
}

// importStream answers with the operation and keeps the answer open while that reads the body.
func (s *Server) importStream(c huma.Context, req api.ImportImage) {
	r, w := humago.Unwrap(c)
	conn := http.NewResponseController(w)
	if err := conn.EnableFullDuplex(); err != nil {
		http.Error(w, `{"code":"invalid","message":"this call needs HTTP/1.1"}`, http.StatusBadRequest)
		return
	}
	ended := make(chan struct{})
	started := s.start("import image", func(ctx context.Context, o *op.Operation) error {
		defer close(ended)
		// A client that waits for its own input must not keep the operation from ending.
		defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
		return s.Library.ImportImage(ctx, o, req, r.Body)
	})
	c.SetStatus(started.Status)
	c.SetHeader("Content-Type", "application/json")
	// A client that goes away ends the body, and so the operation.
	_ = newLines(c).write(started.Body)
	<-ended
}
