package cli

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"banger/api"
)

// network serves what is about the network. Its bridge is on a subnet that overlaps.
func (f *fake) network(handle func(string, func(*http.Request) (any, *api.Error))) {
	n := api.NetworkInfo{Available: true, Bridge: "banger0", Rules: []string{"guests reach each other"}}
	handle("GET /v1/network", func(*http.Request) (any, *api.Error) {
		n.Leases, n.Problems = []api.Lease{}, []string{}
		for _, vm := range f.list() {
			if n.Subnet == "" {
				n.Subnet, n.Gateway = "10.86.0.0/22", "10.86.0.1"
			}
			n.Problems = []string{"it overlaps tun\x1b[2J0"}
			n.Leases = append(n.Leases, api.Lease{VM: vm.ID, Name: vm.Name, State: vm.State, Mode: "bridge", IP: "10.86.0.9", MAC: "02:00:00:00:00:01",
				Isolated: true, Forwards: vm.Network.Forwards})
		}
		return n, nil
	})
	handle("POST /v1/network/move", func(r *http.Request) (any, *api.Error) {
		var req api.MoveNetwork
		json.NewDecoder(r.Body).Decode(&req)
		if strings.Contains(req.Subnet, ":") {
			return nil, fail("invalid", "give an IPv4 subnet", "the subnet %s is not IPv4", req.Subnet)
		}
		f.note("move %q", req.Subnet)
		if n.Subnet = req.Subnet; n.Subnet == "" {
			n.Subnet = "10.99.0.0/22"
		}
		return f.begin("move", &api.VM{}), nil
	})
	handle("POST /v1/vms/{ref}/ports", func(r *http.Request) (any, *api.Error) {
		vm, err := f.find(r.PathValue("ref"))
		if err != nil {
			return nil, err
		}
		var req api.ChangePorts
		json.NewDecoder(r.Body).Decode(&req)
		f.note("ports +%v -%v", req.Add, req.Remove)
		var forwards []api.Forward
		for _, text := range req.Add {
			host, guest, _ := strings.Cut(text, ":")
			h, herr := strconv.Atoi(host)
			g, gerr := strconv.Atoi(guest)
			if herr != nil || gerr != nil || h == 0 {
				return nil, fail("invalid", "write it as HOST:GUEST", "%q is no port to forward", text)
			}
			forwards = append(forwards, api.Forward{Protocol: "tcp", HostIP: "127.0.0.1", HostPort: h, GuestPort: g})
		}
		vm.Network.Forwards = forwards
		return vm, nil
	})
}
