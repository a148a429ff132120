package cli

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"time"

	"banger/api"
)

// system serves what is about the host as a whole. Its census finds, until it is swept, an
// orphan, and its files one that nothing needs.
func (f *fake) system(handle func(string, func(*http.Request) (any, *api.Error))) {
	found := []api.Finding{{Kind: "directory", Name: "/s/vms/00000000000a", VM: "00000000000a"}}
	orphan := api.Finding{Kind: "process", Name: "4711\x1b[2J", VM: "00000000000b", Problem: "no row explains it"}
	swept, pruned := false, false
	handle("GET /v1/system/census", func(*http.Request) (any, *api.Error) {
		if swept {
			return found, nil
		}
		return append(slices.Clone(found), orphan), nil
	})
	handle("POST /v1/system/sweep", func(*http.Request) (any, *api.Error) {
		f.note("sweep")
		swept = true
		return []api.Finding{orphan}, nil
	})
	handle("POST /v1/prune", func(r *http.Request) (any, *api.Error) {
		files := []api.File{{Path: "/s/cache/old.cpio", Bytes: 4 << 20}}
		if pruned {
			files = nil
		}
		if r.URL.Query().Get("dry") != "true" {
			f.note("prune")
			pruned = true
		}
		return files, nil
	})
	handle("GET /v1/dns", func(*http.Request) (any, *api.Error) {
		return api.DNS{Domain: "vm", Publisher: "hosts", Why: "this host does not use\x1b[2J another", Records: 1,
			Problem: "edit /etc/hosts: it is immutable", Hint: "chattr -i /etc/hosts",
			Listeners: []api.DNSListener{{Address: "127.0.0.153:53", For: "host"}, {Address: "172.30.0.1:53", For: "guests", Problem: "it is taken"}},
			Upstreams: []string{"192.0.2.1:53"}}, nil
	})
	handle("GET /v1/dns/records", func(*http.Request) (any, *api.Error) {
		all := []api.DNSRecord{}
		for _, vm := range f.list() {
			if vm.State == api.StateRunning {
				all = append(all, api.DNSRecord{Name: vm.Name + ".vm", IP: "172.30.0.2", VM: vm.ID})
			}
		}
		return all, nil
	})
	handle("GET /v1/vms/{ref}/stats", func(r *http.Request) (any, *api.Error) {
		vm, err := f.find(r.PathValue("ref"))
		if err != nil {
			return nil, err
		}
		if vm.State != api.StateRunning {
			return nil, fail("conflict", "banger start "+vm.Name, "VM %s is %s", vm.Name, vm.State)
		}
		f.next++
		if vm.Name == "mute" {
			return api.Stats{VM: vm.ID, Name: vm.Name, Balloon: &api.BalloonStats{TotalBytes: 256 << 20, AvailableBytes: 192 << 20}}, nil
		}
		return api.Stats{VM: vm.ID, Name: vm.Name, At: time.Unix(int64(1000+f.next), 0), CPUSeconds: float64(f.next) / 4, PSSBytes: 80 << 20, DiskBytes: 1 << 20,
			Guest: &api.GuestStats{Load1: 0.25, MemoryTotalBytes: 512 << 20, MemoryAvailableBytes: 384 << 20, RxBytes: 1024, TxBytes: 2048}}, nil
	})
}

// transitions is a life with a few events, of which the last has a reason of the guest's.
func (f *fake) transitions(w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
	all := []api.Transition{
		{Seq: 1, VM: "00000000000a", Name: "web", To: api.StateCreating, Cause: "create"},
		{Seq: 2, VM: "00000000000a", Name: "web", From: api.StateCreating, To: api.StateRunning, Cause: "started"},
		{Seq: 3, VM: "00000000000a", Name: "web", From: api.StateRunning, To: api.StateFailed, Cause: "stopped", Reason: "panic\x1b]0;x\x07"},
		{Seq: 4, VM: "00000000000a", Name: "web", From: api.StateFailed, Cause: "rm"},
	}
	if after < 0 {
		after = 4
	}
	enc := json.NewEncoder(w)
	for _, t := range all[min(after, 4):] {
		enc.Encode(t)
	}
	http.NewResponseController(w).Flush()
	if r.URL.Query().Get("follow") == "true" {
		f.noteNow("following events")
		select {
		case <-f.done:
		case <-r.Context().Done():
		}
	}
}

func (f *fake) verify(w http.ResponseWriter, _ *http.Request) {
	enc := json.NewEncoder(w)
	enc.Encode(api.Verdict{What: "image tiny"})
	enc.Encode(api.Verdict{What: "image debian", Problem: "it has changed", Hint: "make it anew"})
}
