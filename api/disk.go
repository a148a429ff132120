package api

import (
	"context"
	"net/url"
)

// DiskUse is what one thing of banger's takes of the host's disk.
type DiskUse struct {
	Kind           string `json:"kind" enum:"vm,image,kernel,template,snapshot,cache"`
	Name           string `json:"name"`
	Driver         string `json:"driver,omitempty" doc:"Of a VM's disk"`
	ExclusiveBytes int64  `json:"exclusive_bytes" doc:"What its removal would give back"`
	SharedBytes    int64  `json:"shared_bytes" doc:"What it shares: an image, kernel or template with those who use it, a VM with its image"`
	FreedBytes     *int64 `json:"freed_bytes,omitempty" doc:"What a running VM's guest has freed and the host still holds: a trim gives it back"`
}

// Trimmed is what a trim has brought.
type Trimmed struct {
	GuestBytes int64 `json:"guest_bytes" doc:"What the guest's filesystem said it does not need"`
	HostBytes  int64 `json:"host_bytes" doc:"What the host has back"`
}

// DiskUsage tells what VMs, images, kernels and templates take of the host's disk.
func (c *Client) DiskUsage(ctx context.Context) (uses []DiskUse, err error) {
	return uses, c.call(ctx, "GET", "/v1/disk-usage", nil, &uses)
}

// Trim gives back to the host what a running VM's filesystem does not need.
func (c *Client) Trim(ctx context.Context, ref string) (t Trimmed, err error) {
	return t, c.call(ctx, "POST", "/v1/vms/"+url.PathEscape(ref)+"/trim", nil, &t)
}
