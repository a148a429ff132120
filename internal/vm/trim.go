package vm

import (
	"context"
	"slices"

	"banger/internal/errs"
	"banger/internal/guest/proto"
	"banger/internal/hypervisor"
)

// Trimmed is what a trim has brought, in bytes.
type Trimmed struct {
	Guest int64 // that the guest's filesystem told its disk it does not need
	Host  int64 // that the host's filesystem has back
}

// Trim has a running VM's guest tell its disk what its root filesystem does not need, which
// gives it back to the host. errs.Conflict if it does not run; errs.Unavailable if its VMM
// can't.
func (m *Manager) Trim(ctx context.Context, ref string) (Trimmed, error) {
	v, err := m.Find(ctx, ref)
	if err != nil {
		return Trimmed{}, err
	}
	if v.Spec.Backend == hypervisor.Firecracker {
		return Trimmed{}, errs.New(errs.Unavailable, "Firecracker passes nothing on of what a guest does not need, so the disk of VM %s can't be trimmed", v.Name).
			Try("VMs of QEMU's can: banger run --backend qemu")
	}
	g, err := m.Guest(ctx, v.ID)
	if err != nil {
		return Trimmed{}, err
	}
	before := m.DiskUsage(v).AllocatedBytes
	var t proto.Trim
	if err := g.Call(ctx, proto.MethodTrim, nil, &t); err != nil {
		return Trimmed{}, err
	}
	return Trimmed{Guest: t.Bytes, Host: max(0, before-m.DiskUsage(v).AllocatedBytes)}, nil
}

// Freed adds up what the guest of a VM has freed and the host still holds for its disk, in
// bytes: what a trim would bring. -1: nobody can tell, since no guest runs.
func (m *Manager) Freed(ctx context.Context, v VM) int64 {
	r, err := m.machineOf(v)
	if err != nil || v.State != Running {
		return -1
	}
	ctx, cancel := context.WithTimeout(ctx, guestPatience)
	defer cancel()
	g, err := r.channel(ctx)
	if err != nil {
		return -1
	}
	var free [][2]int64
	for next := int64(0); ; {
		var part proto.Free
		if err := g.Call(ctx, proto.MethodFree, proto.FreeFrom{Offset: next}, &part); err != nil {
			return -1
		}
		free = append(free, part.Ranges...)
		if part.Next <= next { // the end, or a guest that leads in circles
			break
		}
		next = part.Next
	}
	sum := int64(0)
	if err := m.Disks.Extents(v.Disk, func(offset, bytes int64) { sum += overlap(free, offset, bytes) }); err != nil {
		return -1
	}
	return sum
}

// overlap is how much of a range lies in the ranges given, which are in order.
func overlap(ranges [][2]int64, offset, bytes int64) (sum int64) {
	i, _ := slices.BinarySearchFunc(ranges, offset, func(r [2]int64, at int64) int {
		if r[0]+r[1] <= at {
			return -1
		}
		return 1
	})
	for ; i < len(ranges) && ranges[i][0] < offset+bytes; i++ {
		sum += max(0, min(ranges[i][0]+ranges[i][1], offset+bytes)-max(ranges[i][0], offset))
	}
	return sum
}
