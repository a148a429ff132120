package server

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"banger/api"
	"banger/internal/op"
)

type ByID struct {
	ID string `path:"id"`
}

func (s *Server) operationRoutes(a huma.API) {
	events := route("GET", "/v1/operations/{id}/events", "follow-operation", "Follow an operation: one JSON event a line, from its first to its last")
	huma.Register(a, events, func(_ context.Context, in *ByID) (*huma.StreamResponse, error) {
		o, err := s.Ops.Get(in.ID)
		if err != nil {
			return nil, toAPI(err)
		}
		return &huma.StreamResponse{Body: func(c huma.Context) {
			c.SetHeader("Content-Type", "application/x-ndjson")
			lines := newLines(c)
			o.Follow(c.Context(), func(e op.Event) bool { return lines.write(s.event(o, e)) == nil })
		}}, nil
	})
	huma.Register(a, route("DELETE", "/v1/operations/{id}", "cancel-operation", "Cancel an operation, which then undoes what it did"),
		func(_ context.Context, in *ByID) (*none, error) {
			o, err := s.Ops.Get(in.ID)
			if err != nil {
				return nil, toAPI(err)
			}
			o.Cancel()
			return nil, nil
		})
	lease := route("GET", "/v1/lease", "hold-lease", "Hold a lease: its id is the one line that comes, and when the connection ends the VMs created with it are removed")
	huma.Register(a, lease, func(context.Context, *none) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(c huma.Context) {
			id := s.VMs.OpenLease()
			c.SetHeader("Content-Type", "application/x-ndjson")
			if newLines(c).write(map[string]string{"id": id}) == nil {
				<-c.Context().Done()
			}
			// An operation of its own: a VM still being created holds its lock.
			s.Ops.Start("end lease", func(ctx context.Context, _ *op.Operation) error {
				err := s.VMs.EndLease(ctx, id)
				if err != nil {
					s.Log.Error("remove the VMs of a client that is gone", "err", err)
				}
				return err
			})
		}}, nil
	})
}

// event puts an operation's event into words for the client; the last one carries the VM
// as it is then.
func (s *Server) event(o *op.Operation, e op.Event) api.Event {
	out := api.Event{Stage: e.Stage, Done: e.Done, Total: e.Total, Warning: e.Warning, Finished: e.Finished, Error: wire(e.Err), Image: e.Made}
	if id := o.Subject(); e.Finished && id != "" {
		if v, err := s.VMs.Find(context.Background(), id); err == nil { // it may be gone, rightly
			shown := s.show(v)
			out.VM = &shown
		}
	}
	return out
}

// lines writes JSON lines that the client gets at once.
type lines struct {
	enc   *json.Encoder
	flush *http.ResponseController
}

func newLines(c huma.Context) *lines {
	_, w := humago.Unwrap(c)
	return &lines{json.NewEncoder(w), http.NewResponseController(w)}
}

func (l *lines) write(v any) error {
	if err := l.enc.Encode(v); err != nil {
		return err
	}
	return l.flush.Flush()
}
