package api

import "context"

// PoolImage is an image of which VMs are kept ready for who asks for one of it.
type PoolImage struct {
	Image       string `json:"image"`
	Wanted      int    `json:"wanted" doc:"How many are to be ready"`
	Ready       int    `json:"ready"`
	MemoryBytes int64  `json:"memory_bytes" doc:"What those that are ready may take together"`
	Trouble     string `json:"trouble,omitempty" doc:"Why there are not as many as are wanted"`
}

// Pool lists the images that VMs are kept ready of.
func (c *Client) Pool(ctx context.Context) (all []PoolImage, err error) {
	return all, c.call(ctx, "GET", "/v1/pool", nil, &all)
}
