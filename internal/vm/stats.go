package vm

import (
	"context"
	"time"

	"banger/internal/guest/proto"
	"banger/internal/host"
	"banger/internal/hypervisor"
)

// Stats is what a running VM takes and does now.
type Stats struct {
	VM    VM
	At    time.Time
	Host  host.Usage   // of its VMM process
	Disk  int64        // bytes of the host's that its disk alone takes
	Guest *proto.Stats // nil if the guest did not tell in time, or is paused

	hypervisor.Report
}

// guestPatience is how long a guest may take to tell how it is.
const guestPatience = 2 * time.Second

// Stats asks how a running VM is. errs.Conflict if it does not run.
func (m *Manager) Stats(ctx context.Context, ref string) (Stats, error) {
	v, err := m.Find(ctx, ref)
	if err != nil {
		return Stats{}, err
	}
	r, err := m.machineOf(v)
	if err != nil {
		return Stats{}, err
	}
	s := Stats{VM: v, At: time.Now(), Disk: m.DiskUsage(v).AllocatedBytes}
	if s.Host, err = r.machine.Usage(); err != nil {
		return Stats{}, err
	}
	s.Report = r.report(ctx)
	if v.State == Running {
		s.Guest = m.guestStats(ctx, r)
	}
	return s, nil
}

// Complaint returns what the VMM of a VM that runs has said last of what went wrong, or "".
func (m *Manager) Complaint(v VM) string {
	r, err := m.machineOf(v)
	if err != nil {
		return ""
	}
	return r.machine.Complaint()
}

// report returns what the VMM tells of the machine in time.
func (r *running) report(ctx context.Context) hypervisor.Report {
	ctx, cancel := context.WithTimeout(ctx, guestPatience)
	defer cancel()
	return r.machine.Report(ctx)
}

// guestStats returns nil where a guest does not answer: that is part of how it is.
func (m *Manager) guestStats(ctx context.Context, r *running) *proto.Stats {
	ctx, cancel := context.WithTimeout(ctx, guestPatience)
	defer cancel()
	g, err := r.channel(ctx)
	if err != nil {
		return nil
	}
	var s proto.Stats
	if err := g.Call(ctx, proto.MethodStats, nil, &s); err != nil {
		return nil
	}
	return &s
}
