package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"banger/api"
)

// snapshotRoutes are of snapshots, copies, and VMs that are put away.
func (f *fake) snapshotRoutes(handle func(string, func(*http.Request) (any, *api.Error))) {
	handle("POST /v1/vms/{ref}/suspend", f.onVM("suspend", func(vm *api.VM, _ *http.Request) *api.Error {
		vm.State = api.StateSuspended
		return nil
	}))
	handle("POST /v1/vms/{ref}/resume", f.onVM("resume", func(vm *api.VM, _ *http.Request) *api.Error { return f.up(vm) }))
	handle("GET /v1/snapshots", func(*http.Request) (any, *api.Error) { return append([]api.Snapshot{}, f.snapshots...), nil })
	handle("POST /v1/vms/{ref}/snapshot", func(r *http.Request) (any, *api.Error) {
		var req api.TakeSnapshot
		json.NewDecoder(r.Body).Decode(&req)
		vm, err := f.running(r)
		if err != nil {
			return nil, err
		}
		if req.Name == "" {
			req.Name = vm.Name + "-1a2b3c4d"
		}
		switch {
		case !fakeLabel.MatchString(req.Name):
			return nil, fail("invalid", "use letters", "no snapshot can be called %q", req.Name)
		case slices.ContainsFunc(f.snapshots, func(s api.Snapshot) bool { return s.Name == req.Name }):
			return nil, fail("conflict", "choose another name", "there is a snapshot %s", req.Name)
		}
		s := api.Snapshot{Name: req.Name, Of: vm.Name, Image: vm.Image, CPUs: vm.CPUs, MemoryBytes: vm.MemoryBytes, DiskBytes: 8 << 30, DiskDriver: "qcow2", Net: "user", Bytes: 120 << 20, CreatedAt: time.Now()}
		f.snapshots = append(f.snapshots, s)
		return s, nil
	})
	handle("DELETE /v1/snapshots/{name}", func(r *http.Request) (any, *api.Error) {
		i := slices.IndexFunc(f.snapshots, func(s api.Snapshot) bool { return s.Name == r.PathValue("name") })
		if i < 0 {
			return nil, fail("not_found", "banger snapshot ls", "there is no snapshot %q", r.PathValue("name"))
		}
		f.snapshots = slices.Delete(f.snapshots, i, i+1)
		return nil, nil
	})
	handle("POST /v1/vms/{ref}/fork", func(r *http.Request) (any, *api.Error) {
		var req api.ForkVM
		json.NewDecoder(r.Body).Decode(&req)
		vm, err := f.running(r)
		if err != nil {
			return nil, err
		}
		if req.Count < 1 || req.Count > 100 {
			return nil, fail("invalid", "choose 1 to 100", "a VM can't be forked %d times", req.Count)
		}
		f.note("fork env=%v autoremove=%v", req.Env, req.AutoRemove)
		var copies []api.VM
		for i := range req.Count {
			f.next++
			c := *vm
			c.ID, c.Name = fmt.Sprintf("%012x", f.next), fmt.Sprintf("%s-%d", req.Name, i+1)
			f.vms[c.ID] = &c
			copies = append(copies, c)
		}
		return copies, nil
	})
}

func (f *fake) running(r *http.Request) (*api.VM, *api.Error) {
	vm, err := f.find(r.PathValue("ref"))
	if err == nil && vm.State != api.StateRunning {
		err = fail("conflict", "banger start "+vm.Name, "VM %s is %s", vm.Name, vm.State)
	}
	return vm, err
}
