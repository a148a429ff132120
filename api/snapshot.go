package api

import (
	"context"
	"time"
)

// Snapshot is a machine as it was at one moment, with its disk, from which any number of VMs can go
// on.
type Snapshot struct {
	Name        string    `json:"name"`
	Of          string    `json:"of" doc:"Name of the VM that it is of, as it was then"`
	Image       string    `json:"image"`
	Kernel      string    `json:"kernel"`
	CPUs        int       `json:"cpus"`
	MemoryBytes int64     `json:"memory_bytes"`
	DiskBytes   int64     `json:"disk_bytes" doc:"Virtual size of its disk"`
	DiskDriver  string    `json:"disk_driver"`
	Net         string    `json:"net"`
	Accel       string    `json:"accel"`
	Bytes       int64     `json:"bytes" doc:"What it takes of the host's disk"`
	Path        string    `json:"path" doc:"Its files, which hold whatever secrets the guest had in its memory"`
	CreatedAt   time.Time `json:"created_at"`
	Damaged     string    `json:"damaged,omitempty" doc:"Why nothing else is known of it than its name; it can be removed"`
	UsedBy      []string  `json:"used_by" doc:"What lies on its disk: names of VMs and, after the word, of snapshots"`
}

// TakeSnapshot asks for a snapshot.
type TakeSnapshot struct {
	Name string `json:"name,omitempty" doc:"A DNS label; one is invented if empty"`
}

// ForkVM asks for live copies of a VM.
type ForkVM struct {
	Count      int      `json:"count" minimum:"1" maximum:"100"`
	Name       string   `json:"name,omitempty" doc:"Of the copy; of several the beginning, with a number behind it"`
	Env        []string `json:"env,omitempty" doc:"K=V, for every command run in the copies, beyond those of the VM"`
	AutoRemove bool     `json:"auto_remove,omitempty"`
	Lease      string   `json:"lease,omitempty" doc:"Remove the copies when the connection that holds this lease ends"`
}

// Snapshots lists the snapshots, the newest first.
func (c *Client) Snapshots(ctx context.Context) (all []Snapshot, err error) {
	return all, c.call(ctx, "GET", "/v1/snapshots", nil, &all)
}

// TakeSnapshot keeps the machine and the disk of a VM as they are now. One that runs halts while
// it is saved, and goes on.
func (c *Client) TakeSnapshot(ctx context.Context, ref string, req TakeSnapshot) (s Snapshot, err error) {
	return s, c.call(ctx, "POST", vmPath(ref, "/snapshot"), req, &s)
}

// RemoveSnapshot deletes a snapshot that no disk lies on.
func (c *Client) RemoveSnapshot(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", "/v1/snapshots/"+segment(name), nil, nil)
}

// ForkVM makes live copies of a running VM: they go on where it is, under identities of their own.
// Ending ctx leaves none.
func (c *Client) ForkVM(ctx context.Context, ref string, req ForkVM) (copies []VM, err error) {
	return copies, c.call(ctx, "POST", vmPath(ref, "/fork"), req, &copies)
}

// SuspendVM keeps the machine of a VM in files and ends it, for [Client.ResumeVM].
func (c *Client) SuspendVM(ctx context.Context, ref string, progress func(Event)) (VM, error) {
	return c.operate(ctx, "POST", vmPath(ref, "/suspend"), nil, progress)
}
