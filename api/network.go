package api

import "context"

// NetworkInfo is the bridge and who is on it.
type NetworkInfo struct {
	Available bool     `json:"available" doc:"Whether VMs can be on a bridge here"`
	Bridge    string   `json:"bridge" doc:"The interface, or its name to be"`
	Subnet    string   `json:"subnet,omitempty" doc:"Absent before the first VM"`
	Gateway   string   `json:"gateway,omitempty" doc:"The host's own address in it"`
	Leases    []Lease  `json:"leases" doc:"VMs with a network, by name"`
	Rules     []string `json:"rules" doc:"What the packet filter does while a VM is on the bridge, in words"`
	Problems  []string `json:"problems" doc:"What may be in the way, a sentence each"`
}

// Lease is a VM's place in the network.
type Lease struct {
	VM         string    `json:"vm" doc:"Its id"`
	Name       string    `json:"name"`
	State      State     `json:"state"`
	Mode       string    `json:"mode" enum:"bridge,user"`
	IP         string    `json:"ip,omitempty"`
	MAC        string    `json:"mac"`
	Isolated   bool      `json:"isolated"`
	HostAccess bool      `json:"host_access"`
	Forwards   []Forward `json:"forwards,omitempty"`
}

// MoveNetwork asks for another subnet.
type MoveNetwork struct {
	Subnet string `json:"subnet,omitempty" doc:"Empty: one that overlaps nothing"`
}

// ChangePorts asks to forward ports and to forward others no more: [HOSTIP:]HOST:GUEST[/udp].
type ChangePorts struct {
	Add    []string `json:"add,omitempty"`
	Remove []string `json:"remove,omitempty"`
}

// Network describes the bridge and who is on it.
func (c *Client) Network(ctx context.Context) (n NetworkInfo, err error) {
	return n, c.call(ctx, "GET", "/v1/network", nil, &n)
}

// MoveNetwork gives all VMs on the bridge addresses of another subnet.
func (c *Client) MoveNetwork(ctx context.Context, req MoveNetwork, progress func(Event)) error {
	_, err := c.operate(ctx, "POST", "/v1/network/move", req, progress)
	return err
}

// ChangePorts changes which ports are forwarded to a VM, at once if it runs.
func (c *Client) ChangePorts(ctx context.Context, ref string, req ChangePorts) (vm VM, err error) {
	return vm, c.call(ctx, "POST", vmPath(ref, "/ports"), req, &vm)
}
