package api

import (
	"context"
	"net/url"
	"strconv"
	"time"
)

// Template is a machine that was saved when it had finished its boot. VMs that are asked for
// with the same image, kernel, machine and size of disk start warm: they go on from it.
type Template struct {
	Name        string    `json:"name"`
	Image       string    `json:"image"`
	Kernel      string    `json:"kernel"`
	CPUs        int       `json:"cpus"`
	MemoryBytes int64     `json:"memory_bytes"`
	DiskBytes   int64     `json:"disk_bytes" doc:"Virtual size of its disk"`
	DiskDriver  string    `json:"disk_driver"`
	Net         string    `json:"net"`
	Accel       string    `json:"accel"`
	Bytes       int64     `json:"bytes" doc:"What it takes of the host's disk"`
	Key         string    `json:"key" doc:"Digest of all that a VM must have in common with it"`
	Retired     bool      `json:"retired" doc:"No VM starts from it any more; it is there for the disks that lie on it"`
	Path        string    `json:"path"`
	CreatedAt   time.Time `json:"created_at"`
	UsedAt      time.Time `json:"used_at" doc:"When a VM last started from it"`
	UsedBy      []string  `json:"used_by" doc:"Names of the VMs whose disks lie on its own"`
}

// Templates lists the templates, the last used first.
func (c *Client) Templates(ctx context.Context) (ts []Template, err error) {
	return ts, c.call(ctx, "GET", "/v1/templates", nil, &ts)
}

// BuildTemplate makes the template from which a VM that is asked for so can start warm. Of the
// request only what the machine is counts.
func (c *Client) BuildTemplate(ctx context.Context, req CreateVM, progress func(Event)) error {
	_, err := c.operate(ctx, "POST", "/v1/templates", req, progress)
	return err
}

// RemoveTemplate deletes a template that no VM's disk lies on.
func (c *Client) RemoveTemplate(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", "/v1/templates/"+url.PathEscape(name), nil, nil)
}

// PruneTemplates deletes templates that no VM's disk lies on, the last used ones last, until
// the rest takes no more than so many bytes. It returns those that are gone.
func (c *Client) PruneTemplates(ctx context.Context, keepBytes int64) (gone []Template, err error) {
	return gone, c.call(ctx, "POST", "/v1/templates/prune?keep_bytes="+strconv.FormatInt(keepBytes, 10), nil, &gone)
}
