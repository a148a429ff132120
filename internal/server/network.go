package server

import (
	"context"
	"net/netip"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/network"
	"banger/internal/op"
	"banger/internal/vm"
)

func (s *Server) networkRoutes(a huma.API) {
	huma.Register(a, route("GET", "/v1/network", "get-network", "Describe the bridge and who is on it"),
		func(ctx context.Context, _ *none) (*reply[api.NetworkInfo], error) {
			n, err := s.Network(ctx)
			return &reply[api.NetworkInfo]{n}, toAPI(err)
		})
	huma.Register(a, route("POST", "/v1/network/move", "move-network", "Give all VMs on the bridge addresses of another subnet"),
		func(_ context.Context, in *struct{ Body api.MoveNetwork }) (*accepted, error) {
			var subnet netip.Prefix
			if in.Body.Subnet != "" {
				var err error
				if subnet, err = network.ParseSubnet(in.Body.Subnet); err != nil {
					return nil, toAPI(err)
				}
			}
			return s.start("move network", func(ctx context.Context, o *op.Operation) error {
				_, err := s.VMs.Move(ctx, o, subnet)
				return err
			}), nil
		})
	huma.Register(a, route("POST", "/v1/vms/{ref}/ports", "change-ports", "Change which ports are forwarded to a VM, at once if it runs"),
		func(ctx context.Context, in *struct {
			ByRef
			Body api.ChangePorts
		}) (*reply[api.VM], error) {
			v, err := s.VMs.Find(ctx, in.Ref)
			if err != nil {
				return nil, toAPI(err)
			}
			// A client that leaves must not leave half of it done.
			if v, err = s.VMs.ChangeForwards(context.WithoutCancel(ctx), v.ID, in.Body.Add, in.Body.Remove); err != nil {
				return nil, toAPI(err)
			}
			return &reply[api.VM]{s.show(v)}, nil
		})
}

func (s *Server) showNetwork(v vm.VM) api.Network {
	n := api.Network{Mode: string(v.Spec.Net), MAC: v.MAC, DNS: s.Names.Name(v.ID), Isolated: v.Spec.Isolated, HostAccess: v.Spec.HostAccess}
	switch {
	case v.Spec.Net == vm.NetUser:
		n.IP = vm.UserNetAddress
	case v.Address.IsValid():
		n.IP = v.Address.Addr().String()
	}
	for _, f := range v.Spec.Forwards {
		n.Forwards = append(n.Forwards, api.Forward{Protocol: f.Protocol, HostIP: f.Host.Addr().String(), HostPort: int(f.Host.Port()), GuestPort: int(f.Guest)})
	}
	return n
}
