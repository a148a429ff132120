package server

import (
	"context"
	"encoding/json"
	"io"
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
	export := route("GET", "/v1/images/{name}/export", "export-image", "Read an image's files as an archive; what goes wrong on the way is in the trailer Banger-Error")
	huma.Register(a, export, func(_ context.Context, in *struct {
		ByName
		Format string `query:"format" doc:"tar, of the root filesystem, or oci, an archive of a container image" enum:"tar,oci" default:"tar"`
	}) (*huma.StreamResponse, error) {
		write, err := s.Library.ExportImage(in.Name, in.Format)
		if err != nil {
			return nil, toAPI(err)
		}
		return &huma.StreamResponse{Body: func(c huma.Context) { exportTo(c, write) }}, nil
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

func exportTo(c huma.Context, write func(context.Context, io.Writer) error) {
	_, w := humago.Unwrap(c)
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Trailer", "Banger-Error")
	if err := write(c.Context(), w); err != nil {
		b, _ := json.Marshal(wire(err)) // of strings only
		w.Header().Set("Banger-Error", string(b))
	}
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
