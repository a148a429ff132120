// Package server is the daemon's HTTP API: it decodes requests, calls the managers, and
// encodes what they return. The OpenAPI description is generated from the handlers. No
// rule of banger's is decided here.
package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"banger/api"
	"banger/internal/op"
	"banger/internal/vm"
)

// Library is the images and kernels of the daemon.
type Library interface {
	Images(ctx context.Context) ([]api.Image, error)
	ImageInfo(ctx context.Context, name string) (api.Image, error)
	BuildImage(ctx context.Context, o *op.Operation, req api.BuildImage) error
	CheckImage(ctx context.Context, reference string) ([]api.NewerPackage, error)
	CommitVM(ctx context.Context, o *op.Operation, id string, req api.CommitVM) error
	TagImage(ctx context.Context, reference, name string) error
	ImportImage(ctx context.Context, o *op.Operation, req api.ImportImage, body io.Reader) error
	// ExportImage finds an image; the function that it returns then writes it.
	ExportImage(reference, format string) (func(ctx context.Context, w io.Writer) error, error)
	PullImage(ctx context.Context, o *op.Operation, req api.PullImage) error
	RemoveImage(ctx context.Context, reference string) error
	PruneImages(ctx context.Context, all, dry bool) (api.PrunedImages, error)
	Kernels(ctx context.Context) ([]api.Kernel, error)
	ImportKernel(ctx context.Context, o *op.Operation, req api.ImportKernel) error
	RemoveKernel(ctx context.Context, name string) error
	Verify(ctx context.Context, yield func(api.Verdict) bool)
	Prune(ctx context.Context, dry bool) ([]api.File, error)
	DiskUses(ctx context.Context) ([]api.DiskUse, error)
}

// Names are the names of VMs, as they are served and made known.
type Names interface {
	Status() api.DNS
	Records() []api.DNSRecord
	// Name is the name of the VM with this id, if it has one now.
	Name(id string) string
}

// Server serves the API.
type Server struct {
	VMs      *vm.Manager
	Ops      *op.Registry
	Library  Library
	Runtime  Runtime
	Names    Names
	Daemon   func(context.Context) (api.Daemon, error)
	Doctor   func(context.Context) []api.Check
	Network  func(context.Context) (api.NetworkInfo, error)
	Identity string // path of the private key that every guest accepts
	Stop     func() // asks the daemon to end; returns at once
	Log      *slog.Logger

	streams atomic.Int64 // to guests, open now
}

// maxBody bounds a request's JSON, in bytes.
const maxBody = 1 << 20

// Handler returns the API as an HTTP handler.
func (s *Server) Handler(version string) http.Handler {
	mux := http.NewServeMux()
	config := huma.DefaultConfig("banger", version)
	config.CreateHooks = nil // no "$schema" links in answers
	config.DocsPath = ""     // the page would load scripts from elsewhere
	config.Info.Description = "banger's daemon, on its Unix socket. Calls that take long answer with an operation; follow its events to its end."
	a := humago.New(mux, config)
	s.vmRoutes(a)
	s.streamRoutes(a)
	s.operationRoutes(a)
	s.libraryRoutes(a)
	s.runtimeRoutes(a)
	s.daemonRoutes(a)
	s.systemRoutes(a)
	s.diskRoutes(a)
	s.templateRoutes(a)
	s.poolRoutes(a)
	s.snapshotRoutes(a)
	s.networkRoutes(a)
	return versioned(version, mux)
}

// versioned tells in every answer which version of the daemon gives it.
func versioned(version string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.VersionHeader, version)
		next.ServeHTTP(w, r)
	})
}

// route is the short form of a huma.Operation.
func route(method, path, id, summary string) huma.Operation {
	return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, MaxBodyBytes: maxBody}
}

// reply wraps a body as huma wants it.
type reply[T any] struct{ Body T }

// accepted is the answer of a call that started an operation.
type accepted struct {
	Status int
	Body   api.Operation
}

func (s *Server) start(kind string, run func(context.Context, *op.Operation) error) *accepted {
	o := s.Ops.Start(kind, run)
	return &accepted{Status: http.StatusAccepted, Body: api.Operation{ID: o.ID, Kind: kind}}
}

type none struct{}

func (s *Server) daemonRoutes(a huma.API) {
	huma.Register(a, route("GET", "/v1/daemon", "get-daemon", "Describe the daemon"),
		func(ctx context.Context, _ *none) (*reply[api.Daemon], error) {
			d, err := s.Daemon(ctx)
			return &reply[api.Daemon]{d}, toAPI(err)
		})
	huma.Register(a, route("POST", "/v1/daemon/stop", "stop-daemon", "End the daemon; VMs run on"),
		func(context.Context, *none) (*none, error) {
			s.Stop()
			return nil, nil
		})
	huma.Register(a, route("GET", "/v1/doctor", "doctor", "Examine the host"),
		func(ctx context.Context, _ *none) (*reply[[]api.Check], error) {
			return &reply[[]api.Check]{s.Doctor(ctx)}, nil
		})
	huma.Register(a, route("GET", "/v1/dns", "get-dns", "Tell how names are served and made known"),
		func(context.Context, *none) (*reply[api.DNS], error) {
			return &reply[api.DNS]{s.Names.Status()}, nil
		})
	huma.Register(a, route("GET", "/v1/dns/records", "list-dns-records", "List the names that there are now"),
		func(context.Context, *none) (*reply[[]api.DNSRecord], error) {
			return &reply[[]api.DNSRecord]{s.Names.Records()}, nil
		})
	huma.Register(a, route("GET", "/v1/ssh", "get-ssh", "What an SSH client needs to reach VMs"),
		func(ctx context.Context, _ *none) (*reply[api.SSH], error) {
			vms, err := s.VMs.List(ctx)
			if err != nil {
				return nil, toAPI(err)
			}
			out := api.SSH{IdentityFile: s.Identity, HostKeys: []string{}}
			for _, v := range vms {
				out.HostKeys = append(out.HostKeys, v.Name+".vm "+v.HostKeyPub)
			}
			return &reply[api.SSH]{out}, nil
		})
}
